"""The keys of an app that describe its program: ``python``, ``run``, ``hooks`` and ``health``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core import status_codes
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Pattern, Range

ATTRIBUTE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(\))?"
PROCESS_TYPE = r"[A-Za-z0-9_-]{1,30}"
PYTHON_VERSION = r"system|3\.\d{1,2}(\.\d{1,2})?"


@dataclass(frozen=True, kw_only=True)
class Python:
    """The Python of the virtual environment."""

    version: Annotated[
        str | None,
        Doc(
            "C(system), the Python of the distribution, which gets security updates, or a version that uv installs. If unset, "
            "the version in the source's C(.python-version) or C(runtime.txt), or else C(system), which also serves if it is "
            "that version."
        ),
        Pattern(PYTHON_VERSION, '"system" or a version, such as "3.13"'),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Build:
    """The build of a release."""

    env: Annotated[
        dict[str, str | int],
        Doc(
            "Environment variables of the build: of the installation of dependencies and of C(hooks.build), such as "
            "C(SETUPTOOLS_SCM_PRETEND_VERSION) or C(NODE_ENV). Processes do not get them; do not put secrets here."
        ),
    ] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the build."""
        return {key: str(value) for key, value in self.env.items()}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The command of a process, started in the directory of the source."""

    EXACTLY_ONE: ClassVar = ("app", "wsgi", "asgi", "command", "procfile")
    REPLACED: ClassVar = {"scale": "was replaced by the key workers of the app, such as workers: {worker: {count: 2}}"}

    app: Annotated[
        str | None,
        Doc("Tornado Application, or a sync or async function that returns one; the collection's runner serves it."),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.web:make_app"'),
    ] = None
    wsgi: Annotated[
        str | None,
        Doc(
            "WSGI application, such as one of Flask or Django, or a function that returns one; the collection's runner serves it "
            "with threads."
        ),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.wsgi:application"'),
    ] = None
    asgi: Annotated[
        str | None,
        Doc(
            "ASGI application, such as one of FastAPI, Starlette or Django, or a function that returns one; the collection's "
            "runner serves it with uvicorn."
        ),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.asgi:application"'),
    ] = None
    loop: Annotated[
        Literal["asyncio", "uvloop"] | None,
        Doc(
            "Event loop of C(app), C(wsgi) or C(asgi): Python's C(asyncio), or C(uvloop), which takes less CPU time and is added "
            "to the dependencies. If unset, C(asgi) uses uvloop if the app depends on it, and all others asyncio."
        ),
    ] = None
    threads: Annotated[
        int | None, Doc("Threads per process for C(wsgi), that is its concurrent requests; 10 if unset."), Range(1, 1000)
    ] = None
    command: Annotated[
        str | None,
        Doc(
            "Command of any server, run without a shell. The placeholders C({socket}), C({port}) and C({process}) are replaced, "
            "C(PORT) is set in its environment, and C(python) is the Python of the release."
        ),
    ] = None
    procfile: Annotated[
        str | None,
        Doc("Process type in the source's Procfile that serves requests, such as C(web). A shell runs it, with C(PORT) set."),
        Pattern(PROCESS_TYPE, "the name of a process type"),
    ] = None

    @property
    def target(self) -> str | None:
        """The application that the collection's runner serves; None if the app has a server of its own."""
        return self.app or self.wsgi or self.asgi


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A command of a release, and the hosts that run it."""

    command: Annotated[str, Doc("Program and arguments, run without a shell.")]
    once: Annotated[
        bool,
        Doc("Whether only the first host with the app runs the command, and switches, before any other host starts the release."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Commands that run at the steps of a deploy, in the directory of the source and with the environment of the app."""

    build: Annotated[
        str | None,
        Doc(
            "Command that runs during the build and may write into the source. It runs as the user C(_<app>), which cannot "
            "access C(/srv/<app>/shared). If it fails, the build fails."
        ),
    ] = None
    before_start: Annotated[
        str | Hook | None,
        Doc(
            "Command that runs before the first process of the release starts, such as a migration that the new code needs. It "
            "runs as the app's user while the old release serves. If it fails, the deploy fails. It does not run at a rollback "
            "or restart. If unset, C(run.procfile) runs the Procfile's C(release) here, on the first host with the app only."
        ),
    ] = None
    before_switch: Annotated[
        str | Hook | None,
        Doc(
            "Command that runs when the new processes are healthy, before they get traffic. If it fails, the deploy fails. It "
            "does not run at a rollback or restart."
        ),
    ] = None
    after_switch: Annotated[
        str | None, Doc("Command that runs after the release gets traffic. If it fails, the deploy is rolled back.")
    ] = None
    timeout: Annotated[int, Doc("Maximum run time of each hook in seconds."), Range(1, 86_400)] = 600

    def commands(self) -> dict[str, str]:
        """Return the commands by step."""
        found = {step: hook.command if isinstance(hook, Hook) else hook for step, hook in self._hooks().items()}
        return {step: command for step, command in found.items() if command is not None}

    @property
    def once(self) -> list[str]:
        """The steps whose command runs on only one host of the play."""
        return [step for step, hook in self._hooks().items() if isinstance(hook, Hook) and hook.once]

    def _hooks(self) -> dict[str, str | Hook | None]:
        return {
            "build": self.build,
            "before_start": self.before_start,
            "before_switch": self.before_switch,
            "after_switch": self.after_switch,
        }


@dataclass(frozen=True, kw_only=True)
class Health:
    """The health check of a process, at a deploy and afterwards."""

    path: Annotated[
        str,
        Doc("URL path of the health check, which a healthy process answers with one of C(status)."),
        Pattern(
            r"(?=.{1,500}$)(/|(/(?!\.{1,2}(/|$))[!%&(-.0-:<-Z^-z|~?]{1,200})+/?)",
            "a path that starts with /, of up to 500 ASCII characters, without //, /../, blanks and any of ' \" \\ ; { } $ # [ ]",
        ),
    ] = "/"
    status: Annotated[
        list[int | str],
        Doc("Status codes of a healthy process, and ranges of them, such as C([200, 401, 300-399])."),
        Range(200, 499),
        Pattern(r"[2-4][0-9]{2}(-[2-4][0-9]{2})?", 'a code or a range from 200 to 499, such as 204 or "300-399"'),
    ] = field(default_factory=lambda: list(status_codes.DEFAULT))
    headers: Annotated[
        dict[str, str],
        Doc(
            "Headers of the health check, such as C(Host), by default the first of C(domains). Not for secrets, as users of the "
            "host can read them."
        ),
        Pattern(r"[ !#&-\[\]-~]*", 'one line of ASCII characters without " \\ $ and %'),
    ] = field(default_factory=dict)
    timeout: Annotated[
        int,
        Doc(
            "Seconds within which a new process must become healthy. Time in which it waits for a CPU does not count, up to four "
            "times as long."
        ),
        Range(1, 600),
    ] = 30
