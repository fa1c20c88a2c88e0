"""How the answers of an app were, by nginx's access log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

#: Where nginx.conf of the nginx role logs, and the end of its lines if they are text: "request" status bytes "referer" "agent"
#: "upstreams" "their seconds" seconds id. Quotes inside of the quoted fields are escaped by nginx.
ACCESS_LOG = Path("/var/log/nginx/access.log")
LINE = re.compile(r'" (?P<status>\d{3}) \d+ "[^"]*" "[^"]*" "(?P<upstream>[^"]*)" "[^"]*" \S+ \S+$')

#: Bytes of it that are read at a time; what is more is left for the next time.
MAX_BYTES = 64 << 20


def parse_line(line: str) -> tuple[str, list[str]] | None:
    """Return the status and the upstream addresses that a line tells of, which is text or JSON; None for any other line."""
    if line.startswith("{"):
        try:
            found = json.loads(line)
            status, upstream = str(found["status"]), str(found["upstream_addr"])
        except (ValueError, KeyError):
            return None
    elif match := LINE.search(line):
        status, upstream = match["status"], match["upstream"]
    else:
        return None
    return status, re.split(r"[, ]+", upstream)


class ResponseCounter:
    """Counts the answers that were logged since this was made: ``total``, and ``errors``, those with a status of 5xx."""

    def __init__(self, is_ours: Callable[[str], bool], log: Path = ACCESS_LOG) -> None:
        """Begin at the end of the log; ``is_ours`` is asked for each upstream address."""
        self.total = self.errors = 0
        self._is_ours = is_ours
        self._log = log
        self._end = self._size()

    def read(self) -> None:
        """Count what has been logged meanwhile; a line that is not complete yet is left for the next time."""
        if self._size() < self._end:  # rotated: what the old file got at last is not seen
            self._end = 0
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._end)
            text = file.read(MAX_BYTES)
        complete = text[: text.rfind(b"\n") + 1]
        self._end += len(complete)
        # splitlines() would also split at what a client may send within a line, such as U+2028.
        for line in complete.decode(errors="replace").split("\n"):
            found = parse_line(line)
            if found and any(map(self._is_ours, found[1])):
                self.total += 1
                self.errors += found[0].startswith("5")

    @property
    def error_share(self) -> float:
        """The percentage of errors; 0 while there is no answer."""
        return 100 * self.errors / self.total if self.total else 0

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0
