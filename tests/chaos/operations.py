"""What an operator does: each operation is one command, or two at the same time, with the outcome that it must have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.host import Command
from tools.fleet import CLONE as ROOT

DEPLOY, SITE = "playbooks/deploy.yml", "site.yml"
ROLLBACK, RESTART, REMOVE = "playbooks/rollback.yml", "playbooks/restart.yml", "playbooks/remove.yml"

MAIN, OTHER = "sample", "other"

#: Appended to the sample app's web.py: responses name the code and the settings that answer.
MARKING = """

import os

WhoAmIHandler.get = lambda self: self.write(self.whoami() | {{"mark": "{code}." + os.environ["SETTING"]}})
"""

#: Code of releases that never become healthy.
BROKEN_CODE = {
    "import": "import no_such_module",
    "crash": "import threading\nthreading.Timer(1, os._exit, [3]).start()",
    "error": "HealthHandler.get = ReadyHandler.get = lambda self: self.send_error(500)",
    "silent": "HealthHandler.get = ReadyHandler.get = lambda self: asyncio.sleep(60)",
}

#: Hooks that fail. A release whose ``after_switch`` fails answers until it is rolled back.
BROKEN_HOOKS = ("build", "before_switch", "after_switch")

#: The step of a deploy that a rollback preempts, and the keys that prolong it. The drain depends on the release that the deploy
#: replaces, which has open websockets.
PREEMPTED: dict[str, dict[str, Any]] = {
    "build": {"hooks": {"build": "sleep 120"}},
    "before_switch": {"hooks": {"before_switch": "sleep 120"}},
    "soak": {"soak": 120},
    "drain": {},
}
DRAIN = 25


@dataclass
class App:
    """The desired state of an app, and the release that serves."""

    name: str
    domains: list[str]
    code: int = 0
    setting: int = 0
    processes: int = 2
    health: str = "/healthz"
    #: What nginx itself answers to GET /site, which belongs to the release.
    site: int = 0
    #: The mark of the release that serves, and the entry with which it was deployed; no mark if the app is not deployed.
    live: str = ""
    entry: dict[str, Any] = field(default_factory=dict)
    #: The marks and entries of releases that were rolled back.
    undone: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Operation:
    """Commands and their outcome."""

    name: str
    command: Command
    #: The mark that each app serves afterwards; an empty one if the app is removed.
    outcome: dict[str, str]
    fails: bool = False
    #: Marks that may answer meanwhile, besides those before and after.
    may_answer: tuple[str, ...] = ()
    reloads: bool = False
    #: A second command, started when the first is at the step ``at``, or at a random time; it must succeed if ``preempts``.
    second: Command | None = None
    at: str = ""
    preempts: bool = False
    #: The command that reaches the outcome after a fault, if it is not ``command``.
    again: Command | None = None
    #: What precedes the commands.
    first: Operation | None = None
    on_success: Callable[[], None] = lambda: None


class Operator:
    """Draws operations from the current state. Each new release has a mark of its own."""

    def __init__(self, directory: Path, number: int, hosts: int = 1) -> None:
        """Deploy nothing yet; the numbers of releases follow ``number``, and the app hosts number ``hosts``."""
        self.directory, self.hosts = directory, hosts
        self.apps = {
            MAIN: App(MAIN, [f"{MAIN}.test"]),
            OTHER: App(OTHER, [f"{OTHER}.test"], processes=1),
        }
        self.number = number

    def source(self, code: str, *, line: str = "", requirements: str = "") -> str:
        """Return a directory with a copy of the sample app that names ``code`` in its responses."""
        copied = self.directory / f"code-{code}"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(ROOT / "files/sample_app", copied, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        with (copied / "sample_app/web.py").open("a") as file:
            file.write(MARKING.format(code=code) + line)
        if requirements:
            (copied / "requirements.txt").write_text(requirements)
        return str(copied)

    def new_entry(self, app: App, **keys: Any) -> tuple[str, dict[str, Any]]:
        """Return the mark and the entry of a release with the app's current keys."""
        mark = f"{app.code}.{app.setting}"
        path = self.directory / f"code-{app.code}"
        entry = {
            "source": {"path": str(path) if path.exists() else self.source(str(app.code))},
            "run": {"app": "sample_app.web:make_app"},
            "health": {"path": app.health, "timeout": 60},
            "domains": app.domains,
            "processes": app.processes,
            "drain": 2,
            "keep_releases": 2,
            "env": {"SETTING": str(app.setting)},
            "paths": {"/site": {"extra": f"return 200 {app.site};", "buffering": True}},
        }
        return mark, deepcopy(entry | keys)

    def desired(self, **entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return ``tornado_apps``: the entries that are live, and changed ones."""
        return {name: app.entry for name, app in self.apps.items() if app.live} | entries

    def next(self) -> int:
        """Return a number that no release has."""
        self.number += 1
        return self.number

    def record(self, app: App, mark: str, entry: dict[str, Any]) -> Callable[[], None]:
        """Return a function that records that a release with this entry serves."""

        def record() -> None:
            app.live, app.entry = mark, entry
            app.entries[mark] = entry

        return record

    def draw(self, random: Random) -> Operation:
        """Return a random operation."""
        kind = random.choices(list(OPERATIONS), [weight for _, weight in OPERATIONS.values()])[0]
        return OPERATIONS[kind][0](self, random)

    def first(self) -> Operation:
        """Return the provisioning of the host."""
        return self.change(self.apps[MAIN], "provision", SITE, code=True)

    def change(self, app: App, name: str, playbook: str, *, code: bool = False, reloads: bool = False, **keys: Any) -> Operation:
        """Return the deploy of new code or, without ``code``, of new settings and other changed keys."""
        if code:
            app.code = self.next()
        else:
            app.setting = self.next()
        mark, entry = self.new_entry(app, **keys)
        options = {"app": app.name} if playbook == DEPLOY else {}
        command = Command(playbook, self.desired(**{app.name: entry}), options)
        return Operation(name, command, {app.name: mark}, reloads=reloads, on_success=self.record(app, mark, entry))

    def deploy_code(self, random: Random) -> Operation:
        """Deploy new code, with either playbook."""
        return self.change(self.apps[MAIN], "new code", random.choice([DEPLOY, DEPLOY, SITE]), code=True)

    def deploy_setting(self, random: Random) -> Operation:
        """Deploy changed settings."""
        return self.change(self.apps[MAIN], "changed settings", random.choice([DEPLOY, SITE]))

    def deploy_again(self, random: Random) -> Operation:
        """Deploy what is live, or a release that was rolled back, which must not return."""
        app = self.apps[MAIN]
        undone = random.choice([*app.undone.values(), None])
        entry = undone | {"domains": app.domains} if undone else app.entry  # domains do not belong to a release
        command = Command(random.choice([DEPLOY, SITE]), self.desired(**{MAIN: entry}))
        return Operation(
            "rolled-back release again" if undone else "the same again", command, {MAIN: app.live}, reloads=bool(undone)
        )

    def scale(self, random: Random) -> Operation:
        """Change the number of processes."""
        app = self.apps[MAIN]
        app.processes = random.choice([count for count in (1, 2, 3) if count != app.processes])
        return self.change(app, f"scale to {app.processes}", DEPLOY, reloads=True)

    def change_site(self, random: Random) -> Operation:
        """Change the path of the health check or options of the site together with the settings, or add or remove a domain."""
        app = self.apps[MAIN]
        kind = random.choice(["health", "site", "domains"])
        if kind == "health":
            app.health = "/readyz" if app.health == "/healthz" else "/healthz"
            return self.change(app, f"health check at {app.health}", random.choice([DEPLOY, SITE]), reloads=True)
        if kind == "site":
            app.site = self.next()
            return self.change(app, "site options", random.choice([DEPLOY, SITE]), reloads=True)
        app.domains = [f"{MAIN}.test"] if len(app.domains) > 1 else [f"{MAIN}.test", "extra.test"]
        return self.change(app, f"domains {', '.join(app.domains)}", random.choice([DEPLOY, SITE]), reloads=True)

    def restart(self, _random: Random) -> Operation:
        """Restart all apps."""
        return Operation("restart", Command(RESTART, self.desired()), {MAIN: self.apps[MAIN].live})

    def broken(self, random: Random) -> Operation:
        """Deploy a release that must be rejected."""
        app = self.apps[MAIN]
        kind = random.choice([*BROKEN_CODE, *BROKEN_HOOKS, "requirements"])
        code = f"broken{self.next()}"
        mark, entry = self.new_entry(app)
        if kind in BROKEN_HOOKS:
            entry["hooks"] = {kind: "sh -c 'sleep 1; exit 3'"}
        requirements = "tornado==6.6.1\ntornado==6.5\n" if kind == "requirements" else ""
        entry |= {"source": {"path": self.source(code, line=BROKEN_CODE.get(kind, ""), requirements=requirements)}}
        entry["health"]["timeout"] = 6
        mark = f"{code}.{app.setting}"
        command = Command(DEPLOY, self.desired(**{MAIN: entry}), {"app": MAIN})
        served = (mark,) if kind == "after_switch" else ()
        return Operation(f"broken release ({kind})", command, {MAIN: app.live}, fails=True, may_answer=served)

    def two_deploys(self, random: Random) -> Operation:
        """Deploy twice at the same time; the second may preempt the first."""
        app = self.apps[MAIN]
        app.code = self.next()
        first, entry = self.new_entry(app)
        command = Command(DEPLOY, self.desired(**{MAIN: entry}), {"app": MAIN})
        operation = self.change(app, "two deploys", DEPLOY, code=True)
        preempts = random.random() < 0.5
        second = Command(DEPLOY, operation.command.apps, {"app": MAIN} | ({"preempt": "true"} if preempts else {}))
        app.entries[first] = entry
        return Operation(
            "preempting deploy" if preempts else "two deploys",
            command,
            operation.outcome,
            may_answer=(first,),
            second=second,
            preempts=preempts,
            again=operation.command,
            on_success=operation.on_success,
        )

    def rollback_during(self, random: Random) -> Operation:
        """Roll back a deploy that is running."""
        app = self.apps[MAIN]
        step = random.choice(list(PREEMPTED))
        first = self.change(app, "", DEPLOY, code=True, drain=DRAIN) if step == "drain" else None
        live, live_entry = (first.outcome[MAIN], first.command.apps[MAIN]) if first else (app.live, app.entry)
        app.code = self.next()
        mark, entry = self.new_entry(app, **PREEMPTED[step])
        served = (mark,) if step in ("soak", "drain") else ()
        if served:
            app.undone[mark] = entry
        app.code, app.setting = (int(number) for number in live.split("."))
        desired = self.desired(**{MAIN: dict(live_entry)})
        return Operation(
            f"rollback during {step}",
            Command(DEPLOY, self.desired(**{MAIN: entry}), {"app": MAIN}),
            {MAIN: live},
            may_answer=served,
            second=Command(ROLLBACK, desired, {"app": MAIN}),
            at=step,
            preempts=True,
            again=Command(DEPLOY, desired, {"app": MAIN}),
            first=first,
            on_success=first.on_success if first else lambda: None,
        )

    def rollback_of_canary(self, random: Random) -> Operation:
        """Roll back a fleet in which only the canary serves the new release."""
        if self.hosts == 1:
            return self.deploy_setting(random)
        app, live = self.apps[MAIN], self.apps[MAIN].live
        canary = self.change(app, "", DEPLOY, code=True)
        mark, entry = canary.outcome[MAIN], canary.command.apps[MAIN]
        app.undone[mark] = dict(entry)
        app.code, app.setting = (int(number) for number in live.split("."))
        options = {"app": MAIN, "canary": "true", "check": "false"}
        return Operation(
            "rollback of a canary",
            Command(ROLLBACK, self.desired(), {"app": MAIN}),
            {MAIN: live},
            may_answer=(mark,),
            again=Command(DEPLOY, self.desired(), {"app": MAIN}),
            first=Operation("", Command(DEPLOY, canary.command.apps, options), {}, fails=True),
        )

    def two_apps(self, random: Random) -> Operation:
        """Deploy both apps at once; a broken release of one must not keep the other from being deployed."""
        app, other = self.apps[MAIN], self.apps[OTHER]
        if not other.live:
            return self.toggle_other(random)
        app.code = other.code = self.next()
        mark, entry = self.new_entry(app)
        other_mark, other_entry = self.new_entry(other)
        if broken := random.random() < 0.4:
            other_entry["hooks"] = {"before_switch": "false"}
            other_mark = other.live
        records = [self.record(app, mark, entry), *([] if broken else [self.record(other, other_mark, other_entry)])]

        def record() -> None:
            for function in records:
                function()

        command = Command(random.choice([DEPLOY, SITE]), self.desired(**{MAIN: entry, OTHER: other_entry}))
        name = "two apps, one broken" if broken else "two apps"
        return Operation(name, command, {MAIN: mark, OTHER: other_mark}, fails=broken, on_success=record)

    def toggle_other(self, _random: Random) -> Operation:
        """Add the second app, or remove it."""
        other = self.apps[OTHER]
        if not other.live:
            return self.change(other, "add an app", SITE, code=True, reloads=True)
        apps = {name: entry for name, entry in self.desired().items() if name != OTHER}

        def record() -> None:
            other.live, other.entry = "", {}

        return Operation("remove an app", Command(REMOVE, apps, {"app": OTHER}), {OTHER: ""}, reloads=True, on_success=record)

    def rollback(self, _random: Random) -> Operation:
        """Roll back; the caller sets the outcome from the history of the host."""
        return Operation("rollback", Command(ROLLBACK, self.desired(), {"app": MAIN}), {MAIN: ""})

    def roll_back_to(self, operation: Operation, mark: str, release: str) -> Operation:
        """Complete a rollback with its target."""
        app = self.apps[MAIN]
        bad, entry = app.live, app.entries.get(mark, app.entry)

        def record() -> None:
            app.undone[bad] = app.entry
            app.undone.pop(mark, None)
            app.live, app.entry = mark, entry | {"domains": app.domains}  # which belong to the site, not to a release
            app.code, app.setting = (int(number) for number in mark.split("."))
            app.processes, app.health = entry["processes"], entry["health"]["path"]
            app.site = int(site_answer(entry))

        again = Command(ROLLBACK, operation.command.apps, {"app": MAIN, "release": release})
        reloads = any(entry[key] != app.entry[key] for key in ("health", "processes", "paths"))
        return Operation(f"rollback to {mark}", operation.command, {MAIN: mark}, reloads=reloads, again=again, on_success=record)


def site_answer(entry: dict[str, Any]) -> str:
    """Return what nginx answers to GET /site with an entry."""
    return str(entry["paths"]["/site"]["extra"].removeprefix("return 200 ").removesuffix(";"))


#: Operations and their weights.
OPERATIONS: dict[str, tuple[Callable[[Operator, Random], Operation], int]] = {
    "code": (Operator.deploy_code, 4),
    "setting": (Operator.deploy_setting, 2),
    "again": (Operator.deploy_again, 2),
    "scale": (Operator.scale, 2),
    "site": (Operator.change_site, 3),
    "restart": (Operator.restart, 2),
    "rollback": (Operator.rollback, 3),
    "rollback during": (Operator.rollback_during, 4),
    "rollback of a canary": (Operator.rollback_of_canary, 2),
    "broken": (Operator.broken, 4),
    "two deploys": (Operator.two_deploys, 3),
    "two apps": (Operator.two_apps, 3),
    "other": (Operator.toggle_other, 2),
}
