"""Settings that the tests of all scenarios share."""

from __future__ import annotations

#: Lines of a long text that a failed assertion shows: its end is where Ansible reports failures.
SHOWN_LINES = 60


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show the end of an output in which a text was not found, line by line; pytest shows the first characters."""
    if op not in ("in", "not in") or not isinstance(right, str) or right.count("\n") < SHOWN_LINES // 4:
        return None
    lines = right.rstrip().split("\n")
    return [f"{left!r} {op} {len(lines)} lines, which end with:", *lines[-SHOWN_LINES:]]
