"""The programs of the administrator in the configuration of supervisord."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Sections of supervisord.conf that the collection sets, too.
_OWN = frozenset({"include", "rpcinterface:supervisor", "supervisorctl", "supervisord", "unix_http_server"})

#: Options in these sections that change how supervisord runs its programs, or who controls it.
_EFFECTIVE = (("supervisord", "environment"), ("unix_http_server", "chown"), ("unix_http_server", "chmod"))

#: Their values that the collection's file does not narrow, and that may be shown.
_KEPT = {"chown": frozenset({"root", "root:root"}), "chmod": frozenset({"0700", "700", "0770", "770"})}

#: The socket of the supervisord of the apps.
SOCKET = Path("/run/supervisor.sock")

#: The configuration of a supervisord that pip has installed. supervisorctl prefers it to that of Debian's package.
OTHER = Path("/etc/supervisord.conf")

#: Sections that define a group of processes.
_GROUP = re.compile(r"(?:program|fcgi-program|eventlistener|group):\s*(\S+)")

#: What the configuration of a release of an app contains.
_RELEASE = re.compile(r"^command=/srv/[\w-]+/releases/", re.MULTILINE)


@dataclass(frozen=True)
class ExistingPrograms:
    """Files by name of the process groups that are not of apps, and what a new supervisord.conf would lack.

    ``managed`` is whether supervisord.conf is already that of the collection; ``other_socket`` is the socket of another
    supervisord of the host, if there is one.
    """

    groups: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    managed: bool = False
    other_socket: str | None = None


def existing_programs(root: Path = Path("/etc/supervisor"), other: Path = OTHER) -> ExistingPrograms:
    """Return the programs of the administrator."""
    main = root / "supervisord.conf"
    text = _read(main)
    managed = "Ansible managed" in text[:200]
    lost = [] if managed else list(_lost(_parse(text)))
    groups = dict(_groups(main, text))
    for path in sorted((root / "conf.d").glob("*.conf")):
        groups |= {} if _RELEASE.search(text := _read(path)) else dict(_groups(path, text))
    is_another = other.is_file() and other.resolve() != main.resolve()
    socket = _parse(_read(other)).get("unix_http_server", "file", fallback="")
    return ExistingPrograms(groups, lost, managed, os.path.realpath(socket) if is_another else None)


def _lost(parser: configparser.RawConfigParser) -> Iterator[str]:
    yield from (f"[{section}]" for section in parser.sections() if section not in _OWN)
    for section, option in _EFFECTIVE:
        value = parser.get(section, option, fallback="") or ""
        if value and value not in _KEPT.get(option, ()):
            shown = f"{option}={value}" if option in _KEPT else option  # an environment may contain secrets
            yield f"{shown} in [{section}]"
    files = parser.get("include", "files", fallback="").split()
    yield from (f"[include] {pattern}" for pattern in files if not pattern.endswith("conf.d/*.conf"))


def _groups(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for section in _parse(text).sections():
        if found := _GROUP.fullmatch(section.strip()):
            yield found[1], str(path)


def _parse(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";", "#"), allow_no_value=True)
    try:
        parser.read_string(text)
    except configparser.Error:
        return configparser.RawConfigParser()
    return parser


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
