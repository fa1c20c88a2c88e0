"""What the app is told: by its environment wherever it runs, and on its command line when it runs by itself."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, cast

SWITCH = {"1": True, "true": True, "0": False, "false": False}


class SettingsError(ValueError):
    """What is set is wrong; the message says which option or variable, and what would be right."""


def option(text: str, *, default: Any = "", variable: str = "", secret: bool = False) -> Any:
    """Describe one setting: what it means, what it is when nothing is said, and the environment variable it is read from."""
    return field(default=default, repr=not secret, metadata={"help": text, "variable": variable})


@dataclass(frozen=True)
class Settings:
    """All settings. Each field ``some_thing`` is the option ``--some-thing`` of ``python -m sample_app``."""

    proc: int = option("processes to serve from; 0: one per CPU", default=1)
    port: int = option("port to listen on", default=8888, variable="PORT")
    address: str = option("address to listen on, '' for all", default="127.0.0.1")
    env: str = option("what this installation is called, such as production", default="development", variable="SAMPLE_ENV")
    debug: bool = option("reload on changed code, show tracebacks; for one process only", default=False)
    ssl: bool = option("serve HTTPS, with --certificate and --key", default=False)
    certificate: str = option("file of the certificate and its chain")
    key: str = option("file of the certificate's private key")

    log_host: str = option("syslog server that log lines are sent to as well, over UDP", variable="LOG_HOST")
    log_port: int = option("port of the syslog server", default=514, variable="LOG_PORT")
    log_file: str = option("file that log lines are written to as well; it is rotated")

    db_uri: str = option("MongoDB, as mongodb://...; instead of the five below", variable="MONGODB_URI", secret=True)
    db_host: str = option("MongoDB's host; without one there is no database", variable="MONGODB_HOST")
    db_port: int = option("MongoDB's port", default=27017, variable="MONGODB_PORT")
    db_name: str = option("name of the database", default="sample", variable="MONGODB_NAME")
    db_user: str = option("user of the database", variable="MONGODB_USER")
    db_password: str = option("the user's password; a command line is seen by others", variable="MONGODB_PASSWORD", secret=True)

    lock_server: bool = option("coordinate with the other processes through the etcd of the two below", default=False)
    lock_server_host: str = option("etcd's host", default="localhost")
    lock_server_port: int = option("etcd's port", default=2379)
    lock_server_endpoints: str = option("etcd's URLs, comma separated; instead of the three above", variable="ETCD_ENDPOINTS")
    lock_server_user: str = option("user of etcd", variable="ETCD_USER")
    lock_server_password: str = option(
        "the user's password; a command line is seen by others", variable="ETCD_PASSWORD", secret=True
    )
    lock_server_ca: str = option("file of the authority that has signed etcd's certificate", variable="ETCD_CA")
    lock_ttl: int = option(
        "seconds after which the lock of a process that is gone is free", default=5, variable="SAMPLE_LOCK_TTL"
    )

    jobs: bool = option("run the example jobs", default=False, variable="SAMPLE_JOBS")
    jobs_interval: int = option("seconds from one run of the example job to the next", default=2, variable="SAMPLE_JOBS_INTERVAL")
    jobs_seconds: float = option("seconds that the example job takes", default=0.0, variable="SAMPLE_JOBS_SECONDS")
    upstream: str = option("base URL of the service that /fetch asks", variable="SAMPLE_UPSTREAM")
    origins: str = option(
        "origins whose pages may use /documents, comma separated, such as https://a.example", variable="SAMPLE_ORIGINS"
    )
    theme: str = option("light, dark, or auto: as the browser likes", default="auto", variable="SAMPLE_THEME")
    cookie_secret: str = option(
        "signs a cookie that counts visits; a command line is seen by others", variable="COOKIE_SECRET", secret=True
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work; raises SettingsError."""
        for name in ("port", "log_port", "db_port", "lock_server_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise SettingsError(f"{called(name)}: {getattr(self, name)} is not a port: 0 to 65535")
        for name, least in (("proc", 0), ("lock_ttl", 2), ("jobs_interval", 1), ("jobs_seconds", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{called(name)}: {getattr(self, name)} is too small: the least is {least}")
        if self.ssl != bool(self.certificate and self.key):
            raise SettingsError("--ssl: goes with both --certificate and --key")
        if self.debug and self.proc != 1:
            raise SettingsError("--debug: reloading is for one process, and --proc asks for others")
        for name, urls in (
            ("origins", self.allowed_origins),
            ("upstream", [self.upstream] if self.upstream else []),
            ("lock_server_endpoints", self.endpoints),
        ):
            path = "(/[^?#]*)?" if name == "upstream" else ""
            for url in urls:
                if re.fullmatch(rf"https?://[^/?#@\s]+{path}", url) is None:
                    raise SettingsError(f"{called(name)}: {url!r} is not a URL such as https://host.example:8443")

    @property
    def endpoints(self) -> list[str]:
        """The URLs of etcd; empty if there is no lock server."""
        if self.lock_server_endpoints:
            return split(self.lock_server_endpoints)
        return [f"http://{self.lock_server_host}:{self.lock_server_port}"] if self.lock_server else []

    @property
    def has_database(self) -> bool:
        """Whether there is a database."""
        return bool(self.db_uri or self.db_host)

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins whose pages may use what is open to other sites."""
        return frozenset(split(self.origins))


def split(text: str) -> list[str]:
    """Split a comma-separated list."""
    return [part.strip().rstrip("/") for part in text.split(",") if part.strip()]


def called(name: str) -> str:
    """Return what users call a setting."""
    variable = next(setting.metadata["variable"] for setting in fields(Settings) if setting.name == name)
    switch = f"--{name.replace('_', '-')}"
    return f"{switch} ({variable})" if variable else switch


@contextlib.contextmanager
def blamed(name: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of those who use a setting into a SettingsError that names it."""
    try:
        yield
    except errors as error:
        raise SettingsError(f"{called(name)}: {error}") from error


def read(arguments: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings: what a command line says comes before what the environment says. Raises SettingsError."""
    parser = argparse.ArgumentParser("python -m sample_app", description="Serve the sample app.", allow_abbrev=False)
    for setting in fields(Settings):
        variable = setting.metadata["variable"]
        notes = [f"default: {setting.default}"] if setting.default not in ("", False) else []
        notes += [f"{variable} in the environment"] if variable else []
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
    """Return what the environment says of a setting, or its default; an empty variable says nothing."""
    variable, default = setting.metadata["variable"], cast(str | float, setting.default)
    text = environment.get(variable, "")
    if not text:
        return default
    try:
        return SWITCH[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError):
        right = "1 or 0" if isinstance(default, bool) else "a number"
        raise SettingsError(f"{variable}: {text!r} is not {right}") from None


def identity() -> dict[str, str | int]:
    """Return what this process knows of itself."""
    return {
        "app": os.environ.get("TORNADO_APP", ""),
        "release": os.environ.get("TORNADO_RELEASE", ""),
        "slot": os.environ.get("TORNADO_SLOT", ""),
        "process": os.environ.get("TORNADO_PROCESS", ""),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
    }
