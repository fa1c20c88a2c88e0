"""Escaping of untrusted text, such as output of apps and builds, for terminals, pages and logs."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

#: Characters that change how the rest is displayed: control characters except tab and newline, Unicode separators and
#: directional formatting, byte order marks, and lone surrogates.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")

#: The same and newlines, for a single line.
_ACTIVE_IN_LINE = re.compile(f"{_ACTIVE.pattern}|\n")

#: Positions in the markup of links and mentions: `[text](url)`, `<url|text>`, `<!channel>`, `<a href=...>`, `@name` at the start
#: of a word, `@everyone` and `@here` anywhere. Addresses such as `git@example.com` are no markup.
_MARKUP = re.compile(r"(?<=<)(?=\S)|(?<=(?<!\w)@)(?=\S)|(?<=@)(?=everyone|here\b)|(?<=\])(?=\()")

#: The first line of a Python exception below its traceback, such as "sqlalchemy.exc.OperationalError: no such table".
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Invalid\w*|NotFound|Configured|DoesNotExist)(?::.*)?")


def printable(text: str, *, line: bool = False) -> str:
    r"""Escape the characters of ``text`` that change how the rest is displayed.

    >>> printable("\x1b[2Jgone\u202e")
    '\\x1b[2Jgone\\u202e'

    :arg line: escape newlines too.
    """
    pattern = _ACTIVE_IN_LINE if line else _ACTIVE
    return pattern.sub(_escape, text.replace("\r\n", "\n"))


def printable_message(text: str) -> str:
    """Escape ``text`` and indent all lines after the first, so that none can pass for another message."""
    return printable(text).replace("\n", "\n  ")


def without_markup(text: str) -> str:
    r"""Break links and mentions in untrusted ``text`` for chats, whose services interpret markup; they are displayed as text.

    An invisible space does that in the dialects of all services; none of their escapes does.

    >>> without_markup("[log in](http://evil.test) @everyone")
    '[log in]\u200b(http://evil.test) @\u200beveryone'
    >>> without_markup("git@example.com:shop.git (@ops) a@here")
    'git@example.com:shop.git (@\u200bops) a@\u200bhere'
    """
    return _MARKUP.sub("\u200b", text)


def headline(message: str) -> str:
    """Return a message in one line: the first one, with the reason if the first introduces other lines, such as those of a log.

    The reason is the last exception below a traceback, whose own text may have several lines, or else the last line.
    """
    lines = message.strip().splitlines() or [""]
    first = lines[0].removesuffix(":")
    introduces = first != lines[0] or first.endswith(" ends with")
    if not introduces or len(lines) == 1:
        return first
    exceptions = [line for above, line in pairwise(lines) if above[:1].isspace() and _EXCEPTION.fullmatch(line)]
    return f"{first}: {(exceptions or lines)[-1].strip()}"


def printable_data(data: Any) -> Any:
    """Escape every string in JSON data as a single line."""
    if isinstance(data, str):
        return printable(data, line=True)
    if isinstance(data, dict):
        return {printable_data(key): printable_data(value) for key, value in data.items()}
    if isinstance(data, list):
        return [printable_data(item) for item in data]
    return data


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\\n" if code == ord("\n") else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
