"""Settings: from environment variables, and from the command line of the standalone app."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, cast

BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class SettingsError(ValueError):
    """A setting is invalid; the message names the option or variable, and the valid values."""


def option(text: str, *, default: Any = "", variable: str = "", secret: bool = False) -> Any:
    """Define a setting: its help text, default and environment variable."""
    return field(default=default, repr=not secret, metadata={"help": text, "variable": variable})


@dataclass(frozen=True)
class Settings:
    """All settings. Each field ``some_thing`` is the option ``--some-thing`` of ``python -m sample_app``."""

    proc: int = option("processes to serve from; 0: one per CPU", default=1)
    port: int = option("port to listen on", default=8888, variable="PORT")
    address: str = option("address to listen on, '' for all", default="127.0.0.1")
    env: str = option("name of the environment, such as production", default="development", variable="SAMPLE_ENV")
    debug: bool = option("hot reload on code changes, show tracebacks; single process only", default=False)
    ssl: bool = option("serve HTTPS, with --certificate and --key", default=False)
    certificate: str = option("certificate chain file")
    key: str = option("private key file of the certificate")

    log_host: str = option("syslog server that also receives log lines, over UDP", variable="LOG_HOST")
    log_port: int = option("port of the syslog server", default=514, variable="LOG_PORT")
    log_file: str = option("rotated file for log lines, in addition to the console")

    db_uri: str = option("MongoDB URI, mongodb://...; replaces the five options below", variable="MONGODB_URI", secret=True)
    db_host: str = option("MongoDB host; if unset, no database is used", variable="MONGODB_HOST")
    db_port: int = option("MongoDB port", default=27017, variable="MONGODB_PORT")
    db_name: str = option("name of the database", default="sample", variable="MONGODB_NAME")
    db_user: str = option("database user", variable="MONGODB_USER")
    db_password: str = option("password; other users can read a command line", variable="MONGODB_PASSWORD", secret=True)

    lock_server: bool = option("coordinate with other processes through etcd at the host and port below", default=False)
    lock_server_host: str = option("etcd host", default="localhost")
    lock_server_port: int = option("etcd port", default=2379)
    lock_server_endpoints: str = option("etcd URLs, comma-separated; replaces the three options above", variable="ETCD_ENDPOINTS")
    lock_server_user: str = option("etcd user", variable="ETCD_USER")
    lock_server_password: str = option("password; other users can read a command line", variable="ETCD_PASSWORD", secret=True)
    lock_server_ca: str = option("CA file that etcd's certificate is verified against", variable="ETCD_CA")
    lock_ttl: int = option(
        "seconds after which the lock of a process that has exited expires", default=5, variable="SAMPLE_LOCK_TTL"
    )

    jobs: bool = option("run the example jobs", default=False, variable="SAMPLE_JOBS")
    jobs_interval: int = option("seconds between two runs of the example job", default=2, variable="SAMPLE_JOBS_INTERVAL")
    jobs_seconds: float = option("duration of the example job in seconds", default=0.0, variable="SAMPLE_JOBS_SECONDS")
    upstream: str = option("base URL of the service behind /fetch", variable="SAMPLE_UPSTREAM")
    origins: str = option(
        "origins whose pages may use /documents, comma-separated, such as https://a.example", variable="SAMPLE_ORIGINS"
    )
    theme: str = option("light, dark, or auto: the preference of the browser", default="auto", variable="SAMPLE_THEME")
    cookie_secret: str = option(
        "signs a cookie that counts visits; other users can read a command line", variable="COOKIE_SECRET", secret=True
    )

    def __post_init__(self) -> None:
        """Validate the settings; raises SettingsError."""
        for name in ("port", "log_port", "db_port", "lock_server_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise SettingsError(f"{display_name(name)}: {getattr(self, name)} is not a port: 0 to 65535")
        for name, minimum in (("proc", 0), ("lock_ttl", 2), ("jobs_interval", 1), ("jobs_seconds", 0)):
            if getattr(self, name) < minimum:
                raise SettingsError(f"{display_name(name)}: {getattr(self, name)} is too small: the minimum is {minimum}")
        if self.ssl != bool(self.certificate and self.key):
            raise SettingsError("--ssl: must be used together with --certificate and --key")
        if self.debug and self.proc != 1:
            raise SettingsError("--debug: hot reload supports one process only; remove --proc")
        for name, urls in (
            ("origins", self.allowed_origins),
            ("upstream", [self.upstream] if self.upstream else []),
            ("lock_server_endpoints", self.endpoints),
        ):
            path = "(/[^?#]*)?" if name == "upstream" else ""
            for url in urls:
                if re.fullmatch(rf"https?://[^/?#@\s]+{path}", url) is None:
                    raise SettingsError(f"{display_name(name)}: {url!r} is not a URL such as https://host.example:8443")

    @property
    def endpoints(self) -> list[str]:
        """The URLs of etcd; empty without a lock server."""
        if self.lock_server_endpoints:
            return split_list(self.lock_server_endpoints)
        return [f"http://{self.lock_server_host}:{self.lock_server_port}"] if self.lock_server else []

    @property
    def has_database(self) -> bool:
        """Whether a database is configured."""
        return bool(self.db_uri or self.db_host)

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins whose pages may use handlers with CORS."""
        return frozenset(split_list(self.origins))


def split_list(text: str) -> list[str]:
    """Split a comma-separated list."""
    return [part.strip().rstrip("/") for part in text.split(",") if part.strip()]


def display_name(name: str) -> str:
    """Return the option and environment variable of a setting, for messages."""
    variable = next(setting.metadata["variable"] for setting in fields(Settings) if setting.name == name)
    switch = f"--{name.replace('_', '-')}"
    return f"{switch} ({variable})" if variable else switch


@contextlib.contextmanager
def settings_error(name: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert errors that a setting causes to a SettingsError that names the setting."""
    try:
        yield
    except errors as error:
        raise SettingsError(f"{display_name(name)}: {error}") from error


def read(arguments: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; the command line takes precedence over the environment. Raises SettingsError."""
    parser = argparse.ArgumentParser("python -m sample_app", description="Serve the sample app.", allow_abbrev=False)
    for setting in fields(Settings):
        variable = setting.metadata["variable"]
        notes = [f"default: {setting.default}"] if setting.default not in ("", False) else []
        notes += [f"environment variable {variable}"] if variable else []
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=from_environment(setting, environment),
            help=" ".join([setting.metadata["help"], f"({'; '.join(notes)})" if notes else ""]),
            **(
                {"action": "store_true"} if isinstance(setting.default, bool) else {"type": type(setting.default), "metavar": "…"}
            ),
        )
    return Settings(**vars(parser.parse_args(arguments)))


def from_environment(setting: Field[Any], environment: Mapping[str, str]) -> Any:
    """Return the value of a setting from the environment, or its default if the variable is unset or empty."""
    variable, default = setting.metadata["variable"], cast(str | float, setting.default)
    text = environment.get(variable, "")
    if not text:
        return default
    try:
        return BOOLEANS[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError):
        expected = "1 or 0" if isinstance(default, bool) else "a number"
        raise SettingsError(f"{variable}: {text!r} is not {expected}") from None


def identity() -> dict[str, str | int]:
    """Identify this process."""
    return {
        "app": os.environ.get("TORNADO_APP", ""),
        "release": os.environ.get("TORNADO_RELEASE", ""),
        "slot": os.environ.get("TORNADO_SLOT", ""),
        "process": os.environ.get("TORNADO_PROCESS", ""),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
    }
