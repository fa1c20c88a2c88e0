"""Texts that apps, pushers and builds choose, as they are shown to people and programs."""

from __future__ import annotations

import re
from typing import Any

#: What changes how the rest is read, on a terminal or a page: control characters but for tabs and the ends of lines, the
#: separators and directions of Unicode, marks of the byte order, and halves of characters that cannot be encoded.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")

#: The same, and the ends of lines, where there is to be one line.
_ACTIVE_IN_LINE = re.compile(f"{_ACTIVE.pattern}|\n")


def printable(text: str, *, line: bool = False) -> str:
    r"""Return a text with the characters visible that would change how the rest is read.

    >>> printable("\x1b[2Jgone\u202e")
    '\\x1b[2Jgone\\u202e'

    :arg line: whether it is to be one line, so that the end of a line becomes visible as well.
    """
    pattern = _ACTIVE_IN_LINE if line else _ACTIVE
    return pattern.sub(_escape, text.replace("\r\n", "\n"))


def printable_message(text: str) -> str:
    """Return a printable message whose further lines are set off, so that what a program printed is no line of anybody else's."""
    return printable(text).replace("\n", "\n  ")


def printable_data(data: Any) -> Any:
    """Return data as JSON has it, with each text in it as one printable line."""
    if isinstance(data, str):
        return printable(data, line=True)
    if isinstance(data, dict):
        return {printable_data(key): printable_data(value) for key, value in data.items()}
    if isinstance(data, list):
        return [printable_data(one) for one in data]
    return data


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\\n" if code == ord("\n") else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
