"""Parsers of command line values."""

from __future__ import annotations

import argparse
import ipaddress
import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple


class SyslogAddress(NamedTuple):
    """UDP address of a syslog daemon."""

    host: str
    port: int


def parse_target(text: str) -> tuple[str, str]:
    """Split ``package.module:attribute``; the attribute may be nested, as in ``shop.web:server.app``, and end with ``()``."""
    module, _colon, attribute = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.removesuffix("()").split("."))):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:ATTR or MODULE:ATTR(), such as shop.web:make_app")
    return module, attribute


def parse_size(text: str) -> int:
    """Convert ``65536``, ``64k``, ``50m`` or ``1g`` to bytes."""
    match = re.fullmatch(r"([1-9][0-9]*)([kmg]?)", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 65536, 64k, 50m or 1g")
    number, unit = match.groups()
    return int(number) << {"": 0, "k": 10, "m": 20, "g": 30}[unit]


def parse_mode(text: str) -> int:
    """Convert an octal file mode such as ``660``."""
    if re.fullmatch(r"0?[0-7]{3}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file mode in octal, such as 660")
    return int(text, 8)


def parse_seconds(text: str) -> float:
    """Convert a nonnegative number of seconds."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, such as 30 or 0.5")
    return float(text)


def parse_count(text: str) -> int:
    """Convert a nonnegative integer."""
    if re.fullmatch(r"[0-9]+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parse_port(text: str) -> int:
    """Convert a TCP port; 0 selects a free one."""
    if (port := parse_count(text)) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: the highest is 65535")
    return port


def parse_addresses(text: str) -> list[str]:
    """Split a comma-separated list of IP addresses."""
    addresses = [address.strip() for address in text.split(",")]
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{address!r} is not an IP address") from error
    return addresses


def parse_log_target(text: str) -> Path | SyslogAddress | None:
    """Return the log file or syslog daemon; None for stderr."""
    if text == "stderr":
        return None
    if "://" not in text:
        return Path(text)
    try:
        url = urllib.parse.urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or text not in (f"udp://{host}:{port}", f"udp://[{host}]:{port}"):
        raise argparse.ArgumentTypeError(f"{text!r} is not stderr, a file, or udp://HOST:PORT")
    return SyslogAddress(host, port)
