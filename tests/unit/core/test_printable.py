from __future__ import annotations

import unicodedata

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import (
    headline,
    printable,
    printable_data,
    printable_message,
    without_markup,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nand another line, with äöü 日本 and 👩\u200d💻", None),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J and \x7f", "\\x9b2J and \\x7f"),
        ("all good\rall bad", "all good\\x0dall bad"),
        ("from Windows\r\n", "from Windows\n"),
        ("a\u202eb\u2066c\u2028d", "a\\u202eb\\u2066c\\u2028d"),
        ("half a character \udc9b", "half a character \\udc9b"),
    ],
)
def test_characters_that_affect_the_display_are_escaped(text: str, shown: str | None) -> None:
    assert printable(text) == (shown or text)
    assert printable(printable(text)) == printable(text)


def test_a_line_contains_no_control_characters() -> None:
    everything = printable("".join(map(chr, range(0x110000))), line=True)
    left = {character for character in everything if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    assert left == {"\t"}
    assert not {
        character
        for character in everything
        if unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    everything.encode()


def test_strings_in_data_become_single_lines() -> None:
    data = {"by\n": ["a\nb", 1, None, {"c": "\x1b"}]}
    assert printable_data(data) == {"by\\n": ["a\\nb", 1, None, {"c": "\\x1b"}]}


def test_further_lines_of_a_message_are_indented() -> None:
    assert printable_message("it failed:\nfatal: [web2]\r\n\x1b") == "it failed:\n  fatal: [web2]\n  \\x1b"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no lines", "no lines"),
        ("uv failed:\n  reading a file\n  no such package\n", "uv failed: no such package"),
        (
            "process 0 does not stay up; /a-0.log ends with\n  Traceback\n  KeyError: 'x'",
            "process 0 does not stay up; /a-0.log ends with: KeyError: 'x'",
        ),
        (
            "the hook failed:\nTraceback\n    connect()\nsqlalchemy.exc.OperationalError: no role\n(Background at https://sqlalche.me)",
            "the hook failed: sqlalchemy.exc.OperationalError: no role",
        ),
        (
            "process 0 does not stay up; /a-0.log ends with\n    x\n    ^^^\nKeyError: 'x'\n[ERROR] Shutting down: Master",
            "process 0 does not stay up; /a-0.log ends with: KeyError: 'x'",
        ),
        ("the hook failed:\nNotAnException: said the app\nno such table", "the hook failed: no such table"),
        ("two mistakes\nand another", "two mistakes"),
        ("nothing follows:", "nothing follows"),
        ("", ""),
    ],
)
def test_headline_has_the_reason_that_it_introduces(message: str, expected: str) -> None:
    assert headline(message) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git@github.com:org/shop.git and deploy@[192.0.2.1]", None),
        ("a @ b < c", None),
        ("@everyone (@ops) @@here", "@_everyone (@_ops) @_@_here"),
        ("x@everyone x@here", "x@_everyone x@_here"),
        ("[log in](http://evil.test) <!channel>", "[log in]_(http://evil.test) <_!channel>"),
    ],
)
def test_mentions_and_links_are_broken_but_no_addresses(text: str, shown: str | None) -> None:
    assert without_markup(text).replace("\u200b", "_") == (shown or text)
