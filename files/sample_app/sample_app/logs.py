"""Logging of the standalone app; another server, such as the collection's runner, configures its own."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

from tornado import process

from sample_app.settings import Settings, settings_error

FORMAT = "%(asctime)s %(levelname)-5s %(name)s [sample %(process)d] %(message)s"
FILE_BYTES = 10 << 20
FILE_BACKUPS = 5


def configure(settings: Settings) -> None:
    """Send all loggers to the console, and to the configured targets: a rotated file, a syslog server over UDP.

    Raises SettingsError.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if settings.log_file:
        path, number = Path(settings.log_file), process.task_id()
        if number is not None:
            path = path.with_suffix(f".{number}{path.suffix}")  # two processes cannot rotate one file
        with settings_error("log_file", OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(
                logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILE_BACKUPS, encoding="utf-8")
            )
    if settings.log_host:
        with settings_error("log_host", OSError):
            syslog = logging.handlers.SysLogHandler((settings.log_host, settings.log_port))
        syslog.append_nul = False
        syslog.ident = "sample: "
        handlers.append(syslog)
    logging.basicConfig(handlers=handlers, format=FORMAT, level=logging.INFO, force=True)
