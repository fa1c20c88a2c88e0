"""Prints what failed in the output of `make test`: the first lines of errors of tests, and the last lines of other parts."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

MAX_LINES, MAX_ERROR_LINES, MAX_LINE = 40, 10, 300

_PART = re.compile(r"^([a-z]+(?:-[a-z]+)?): ?(.*)$")  # as the Makefile marks the output of each part
_TIME = re.compile(r"^(\S+) +\d+:\d\d  failed$")  # in the table at the end
_HEADING = re.compile(r"^_+ (?:ERROR at \w+ of )?(?!_)(.+?) _+$")  # not `_ _ _`, which separates the entries of a traceback
_FAILED = re.compile(r"^((?:FAILED|ERROR) \S+?::(.+?))(?: - .*)?$")  # without pytest's message, which it cuts
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def failures(lines: Iterable[str]) -> Iterator[str]:
    """Yield a list of the failed tests, then the first lines of each error, or the last lines of a part without failed tests."""
    ends: dict[str, list[str]] = defaultdict(list)
    errors: dict[tuple[str, str], list[str]] = defaultdict(list)
    tests: dict[tuple[str, str], str] = {}
    failed_parts: list[str] = []
    heading = ""
    for line in (_COLOR.sub("", line.rstrip())[:MAX_LINE] for line in lines):
        failed_parts += _TIME.findall(line)
        if not (marked := _PART.match(line)):
            continue
        part, text = marked.groups()
        ends[part] = [*ends[part][1 - MAX_ERROR_LINES :], text]
        if found := _HEADING.match(text):
            heading = found[1].rpartition(".")[2]
        elif text.startswith("E  "):
            errors[part, heading].append(text)
        elif found := _FAILED.match(text):
            tests[part, found[2].rpartition("::")[2]] = found[1]
    others = [part for part in failed_parts if part not in {part for part, _ in tests}]
    yield from (" - ".join([text, *(error[1:].strip() for error in errors[key][:1])]) for key, text in tests.items())
    yield from (f"FAILED {part}" for part in others)
    for key, text in tests.items():
        yield from (text, *errors[key][:MAX_ERROR_LINES])
    for part in others:
        yield from (f"the end of {part}:", *ends[part])


if __name__ == "__main__":
    with Path(sys.argv[1]).open(errors="replace") as log:
        sys.stdout.writelines(f"{line}\n" for line in islice(failures(log), MAX_LINES))
