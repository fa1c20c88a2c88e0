"""Hot reload on code changes (``--debug``).

Imported only where code is reloaded, because ``tornado.autoreload`` takes 1 MB of memory.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado import autoreload
from tornado.web import Application

from .reloading import Descriptors, pass_on


def enable_debug(application: Any) -> None:
    """Apply the settings that Tornado applies to an application created with ``debug=True``, and start hot reload."""
    if not isinstance(application, Application):
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


def prepare_reload(watched: list[Path], arguments: list[str], open_descriptors: Callable[[], Descriptors]) -> None:
    """Reload on changes of the watched files, too, and pass the arguments and the open descriptors on."""
    for path in watched:
        autoreload.watch(str(path.absolute()))
    autoreload.add_reload_hook(functools.partial(pass_on, Path.cwd(), arguments, open_descriptors))


def watch_failed_code(cause: BaseException) -> None:
    """Reload when the code that raised an exception changes."""
    files = {frame.filename for frame in traceback.extract_tb(cause.__traceback__)}
    if isinstance(cause, SyntaxError) and cause.filename is not None:
        files.add(cause.filename)
    for file in files:
        autoreload.watch(file)
    autoreload.start()
