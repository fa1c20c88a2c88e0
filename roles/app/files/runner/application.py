"""Import and creation of the application to serve."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

from tornado.web import Application

from .errors import RunnerError
from .options import Options

NO_RUNNING_LOOP = "no running event loop"
"""Message of the RuntimeError that `asyncio.get_running_loop` raises."""


class Target:
    """The object that MODULE:ATTR names: the application, or its factory.

    Import and factory run before the event loop does, as in a program that calls the factory and then starts the loop: they may
    use `asyncio.run` or ``IOLoop.current().run_sync``, whose resources belong to the loop that serves. What fails because no
    loop runs is repeated in it, where an asynchronous factory runs in any case.
    """

    def __init__(self, options: Options) -> None:
        """Import nothing yet."""
        self.module, attribute = options.target
        self.attribute = attribute.removesuffix("()")
        self.called = attribute != self.attribute
        self.interface = INTERFACES["wsgi" if options.wsgi else "asgi" if options.asgi else "tornado"]
        self.made: Any = None
        self.is_factory = False
        self.needs_loop = False

    @property
    def expected(self) -> str:
        """What the target may be."""
        return f"{self.interface.expected}, or a function without arguments that returns one"

    def load(self) -> None:
        """Import the module, and call the factory if there is one; raise RunnerError if that fails."""
        with self.failure():
            try:
                self.made = self.make()
            except RuntimeError as error:
                if str(error) != NO_RUNNING_LOOP:
                    raise
                self.needs_loop = True

    async def application(self) -> Any:
        """Return the application; raise RunnerError if that fails."""
        with self.failure():
            made = self.make() if self.needs_loop else self.made
            application = await made if self.is_factory and inspect.isawaitable(made) else made
        self.check(application, "returned an object" if self.is_factory else "is")
        return application

    def make(self) -> Any:
        """Return the object, or what it returns if it is a factory."""
        found: Any = importlib.import_module(self.module)
        for name in self.attribute.split("."):
            found = getattr(found, name, None)
        if found is None:
            raise RunnerError(f"module {self.module} has no {self.attribute}; expected {self.expected}")
        self.is_factory = self.called or is_factory(found, self.interface)
        return found() if self.is_factory else found

    def check(self, application: Any, verb: str) -> None:
        """Raise RunnerError if an object is not an application."""
        if not self.interface.accepts(application):
            kind = type(application).__name__
            raise RunnerError(f"{self.module}:{self.attribute} {verb} of type {kind}; expected {self.expected}")

    @contextlib.contextmanager
    def failure(self) -> Iterator[None]:
        """Convert an exception of the application's own code, during its import or later, to the RunnerError to report."""
        try:
            yield
        except RunnerError:
            raise
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{self.module}.".startswith(f"{missing}."):
                raise RunnerError(
                    f"cannot import {self.module}: no module named {missing} in {Path.cwd()} or the environment; "
                    f"expected {self.attribute} in it, {self.expected}"
                ) from None
            error.__traceback__ = skip_runner_frames(error.__traceback__)
            failed = (
                f"cannot create {self.module}:{self.attribute}" if self.module in sys.modules else f"cannot import {self.module}"
            )
            raise RunnerError(f"{failed}: {''.join(traceback.format_exception_only(error)[-1:]).strip()}") from error


class Interface(NamedTuple):
    """How a server calls an application: what messages call it, and whether an object has it."""

    expected: str
    accepts: Callable[[Any], bool]


def is_factory(found: Any, interface: Interface) -> bool:
    """Return whether an object can be called without arguments, and is not an application itself.

    A callable with ``*args``, such as a decorated application, accepts the arguments of an application, too: it is one.
    """
    return takes(found, 0) and not (interface.accepts(found) and is_variadic(found))


def takes(candidate: Any, count: int) -> bool:
    """Return whether an object can be called with this number of arguments."""
    try:
        inspect.signature(candidate).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # implemented in C, without a signature
        return callable(candidate) and count > 0
    return True


def is_variadic(candidate: Any) -> bool:
    """Return whether a callable accepts any number of arguments."""
    try:
        parameters = inspect.signature(candidate).parameters.values()
    except ValueError:
        return True
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


INTERFACES = {
    "tornado": Interface("a tornado.web.Application", lambda candidate: isinstance(candidate, Application)),
    "wsgi": Interface("a WSGI callable, which takes (environ, start_response)", lambda candidate: takes(candidate, 2)),
    "asgi": Interface("an ASGI callable, which takes (scope, receive, send)", lambda candidate: takes(candidate, 3)),
}


def make_event_loop(options: Options) -> asyncio.AbstractEventLoop:
    """Return a new event loop, by default uvloop's for an ASGI application in whose environment it is, as with uvicorn."""
    if options.loop == "uvloop" or (options.loop is None and options.asgi):
        try:
            uvloop = importlib.import_module("uvloop")
        except ModuleNotFoundError:
            if options.loop is not None:
                raise RunnerError("cannot use --loop uvloop: it is not in the environment") from None
        else:
            return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
    return asyncio.new_event_loop()


def skip_runner_frames(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames of this package and of the import machinery at the start of a traceback."""
    own = (__name__.partition(".")[0], "importlib")
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in own:
        trace = trace.tb_next
    return trace
