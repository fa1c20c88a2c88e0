"""What is printed, and kept: tables in Markdown."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """A table with a title, a line of what it says, and the names of its columns."""

    title: str
    text: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as Markdown; numbers are to the right."""
        widths = [max(len(row[column]) for row in (self.head, *self.rows)) for column in range(len(self.head))]
        lines = [
            "| " + " | ".join(f"{cell:{'>' if column else '<'}{widths[column]}}" for column, cell in enumerate(row)) + " |"
            for row in (self.head, *self.rows)
        ]
        rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
        return "\n".join([f"## {self.title}", "", self.text, "", lines[0], rule, *lines[1:]]) + "\n"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios pair by pair: what slowed the machine slowed both of a pair."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def say(text: str) -> None:
    """Print a line at once: the table takes its time."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
