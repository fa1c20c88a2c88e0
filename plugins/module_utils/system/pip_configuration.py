"""The package index that the administrator of a host has configured for pip, for uv, which does not read pip.conf."""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT

#: Files for all users of the host; later ones take precedence, and within each the section of the command.
FILES = (Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"))
_SECTIONS = ("global", "install")

#: The configuration of uv, which names a wheelhouse.
UV_CONFIGURATION = UV_ENVIRONMENT.with_name("uv.toml")

#: The certificates that the system trusts, the default of ``python_ca_bundle``.
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

#: Variables of uv for options of pip, with the separator of several values.
_INDEXES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
}
_OTHERS = {"trusted-host": ("UV_INSECURE_HOST", " "), "cert": ("SSL_CERT_FILE", " "), "proxy": ("all_proxy", " ")}

#: The spellings of true in the configuration of pip.
_TRUE = ("1", "on", "t", "true", "y", "yes")


class PipConfigurationError(Exception):
    """A file of pip cannot be read. The message has its path."""


def uv_environment(configured: Mapping[str, str], files: Sequence[Path] = FILES, toml: Path = UV_CONFIGURATION) -> dict[str, str]:
    """Return the variables with which uv uses the indexes, certificates and proxy of pip where the inventory has none.

    :arg configured: the variables from the inventory, whose certificates are by default those of the system.
    :raises PipConfigurationError: when pip would also refuse a file.
    """
    options = _read(files)
    if configured.get("SSL_CERT_FILE", SYSTEM_CERTIFICATES) != SYSTEM_CERTIFICATES:
        options.pop("cert", None)
    if "https_proxy" in configured:
        options.pop("proxy", None)
    return {
        variable: separator.join(values)
        for option, (variable, separator) in (_OTHERS if _is_indexed(configured, toml) else _INDEXES | _OTHERS).items()
        if (values := options.get(option, "").split())
    }


def uv_options(configured: Mapping[str, str], files: Sequence[Path] = FILES, toml: Path = UV_CONFIGURATION) -> list[str]:
    """Return the options of uv, which has no variable for them, with which it uses the directories of pip instead of an index.

    :raises PipConfigurationError: as `uv_environment`.
    """
    options = _read(files)
    without = options.get("no-index", "").lower() in _TRUE and options.get("find-links")  # or nothing could be installed
    return ["--no-index"] if without and not _is_indexed(configured, toml) else []


def _is_indexed(configured: Mapping[str, str], toml: Path) -> bool:
    """Return whether the inventory has indexes, or a wheelhouse that replaces them."""
    return any(variable in configured for variable, _separator in _INDEXES.values()) or _has_wheelhouse(toml)


def _has_wheelhouse(toml: Path) -> bool:
    """Return whether the packages of a wheelhouse replace all indexes."""
    return toml.exists() and bool(tomllib.loads(toml.read_text(encoding="utf-8")).get("no-index"))


def _read(files: Sequence[Path]) -> dict[str, str]:
    """Return the options in the files, by their names on the command line."""
    found: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            reason = str(error).replace("\n", " ")
            raise PipConfigurationError(f"{file} cannot be read: {reason}; correct it") from error
        for section in filter(parser.has_section, _SECTIONS):
            found |= {name.removeprefix("--").replace("_", "-"): value for name, value in parser[section].items()}
    return found
