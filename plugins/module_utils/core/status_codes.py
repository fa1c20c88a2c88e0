"""HTTP status codes that a health check accepts: codes and ranges, such as ``200`` and ``300-399``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: A success or a redirect.
DEFAULT = ("200-399",)


def bounds(accepted: str) -> tuple[int, int]:
    """Return the first and the last code of a code or range."""
    first, _dash, last = accepted.partition("-")
    return int(first), int(last or first)


def accepts(accepted: Sequence[str], status: int) -> bool:
    """Return whether one of the codes and ranges contains ``status``."""
    return any(first <= status <= last for first, last in map(bounds, accepted))


def prefixes(accepted: Sequence[str]) -> list[str]:
    """Return the fewest decimal prefixes that match exactly the accepted codes, as a regular expression can compare them."""
    found: set[str] = set()
    for first, last in map(bounds, accepted):
        found.update(_prefixes(first, last))
    return sorted(prefix for prefix in found if not found & {prefix[:length] for length in range(1, len(prefix))})


def _prefixes(first: int, last: int) -> Iterator[str]:
    while first <= last:
        width = next((width for width in (100, 10) if first % width == 0 and first + width - 1 <= last), 1)
        yield str(first // width)
        first += width
