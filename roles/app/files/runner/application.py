"""Import and creation of the application to serve."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from tornado import autoreload
from tornado.httputil import HTTPHeaders
from tornado.web import Application, OutputTransform
from tornado.wsgi import WSGIContainer

from .errors import RunnerError
from .options import DEFAULT_THREADS, Options
from .wsgi import ContextExecutor, WsgiApplication, is_wsgi

APPLICATION_EXPECTED = "a tornado.web.Application or a function that returns one"
WSGI_EXPECTED = "a WSGI callable, which takes (environ, start_response)"


class UnbufferedEvents(OutputTransform):
    """Disables nginx's buffering for server-sent events, which it would delay over TLS."""

    def transform_first_chunk(self, *args: Any, **kwargs: Any) -> tuple[int, HTTPHeaders, bytes]:
        """Add the header ``X-Accel-Buffering``, which nginx does not pass on."""
        status, headers, chunk = super().transform_first_chunk(*args, **kwargs)
        if headers.get("Content-Type", "").startswith("text/event-stream"):
            headers.setdefault("X-Accel-Buffering", "no")
        return status, headers, chunk


async def load_application(options: Options) -> Application | WSGIContainer:
    """Import the application, or call its factory; raise RunnerError if that fails."""
    module, attribute = options.target
    expected = WSGI_EXPECTED if options.wsgi else APPLICATION_EXPECTED
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name, None)
        made = found() if not options.wsgi and callable(found) and not isinstance(found, Application) else found
        application = await made if inspect.isawaitable(made) else made
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise RunnerError(
                f"cannot import {module}: no module named {error.name} in {Path.cwd()} or the environment; "
                f"expected {attribute} in it, {expected}"
            ) from None
        raise loading_error(module, attribute, error) from error
    except (Exception, SystemExit) as error:
        raise loading_error(module, attribute, error) from error
    if found is None:
        raise RunnerError(f"module {module} has no {attribute}; expected {expected}")
    if not (is_wsgi(application) if options.wsgi else isinstance(application, Application)):
        verb = "is" if application is found else "returned an object"
        raise RunnerError(f"{module}:{attribute} {verb} of type {type(application).__name__}; expected {expected}")
    if options.wsgi:
        return WsgiApplication(application, ContextExecutor(options.threads or DEFAULT_THREADS))
    application.add_transform(UnbufferedEvents)
    return cast(Application, application)


def loading_error(module: str, attribute: str, error: BaseException) -> RunnerError:
    """Return the error to report for an exception that the application's own code raised, during its import or later."""
    error.__traceback__ = skip_runner_frames(error.__traceback__)
    failed = f"cannot import {module}" if module not in sys.modules else f"cannot create {module}:{attribute}"
    return RunnerError(f"{failed}: {''.join(traceback.format_exception_only(error)[-1:]).strip()}")


def skip_runner_frames(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames of this package and of the import machinery at the start of a traceback."""
    own = (__name__.partition(".")[0], "importlib")
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in own:
        trace = trace.tb_next
    return trace


def enable_debug(application: Application | WSGIContainer) -> None:
    """Apply the settings that Tornado applies to an application created with ``debug=True``, and start hot reload."""
    if isinstance(application, WSGIContainer):
        autoreload.start()
        return
    settings = application.settings
    settings["debug"] = True
    settings.setdefault("autoreload", True)
    settings.setdefault("compiled_template_cache", False)
    settings.setdefault("static_hash_cache", False)
    settings.setdefault("serve_traceback", True)
    if settings["autoreload"]:
        autoreload.start()
