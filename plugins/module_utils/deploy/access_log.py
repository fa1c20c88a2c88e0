"""Error rate of an app, counted from nginx's access log while a new release soaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

#: The access log of the nginx role, and the end of its text lines: "request" status bytes "referer" "agent" "upstreams"
#: "upstream seconds" seconds id. nginx escapes quotes inside the quoted fields.
ACCESS_LOG = Path("/var/log/nginx/access.log")
LINE_PATTERN = re.compile(r'" (?P<status>\d{3}) \d+ "[^"]*" "[^"]*" "(?P<upstream>[^"]*)" "[^"]*" \S+ \S+$')

#: Bytes per read; the next read continues there.
MAX_BYTES = 64 << 20


def parse_line(line: str) -> tuple[str, list[str]] | None:
    """Return the status and the upstream addresses of a line in text or JSON format; None for any other line."""
    if line.startswith("{"):
        try:
            fields = json.loads(line)
            status, upstream = str(fields["status"]), str(fields["upstream_addr"])
        except (ValueError, KeyError):
            return None
    elif match := LINE_PATTERN.search(line):
        status, upstream = match["status"], match["upstream"]
    else:
        return None
    return status, re.split(r"[, ]+", upstream)


class ResponseCounter:
    """Counts the responses logged since its creation: ``total``, and ``errors``, those with a 5xx status."""

    def __init__(self, matches: Callable[[str], bool], log: Path = ACCESS_LOG) -> None:
        """Start at the end of the log; ``matches`` selects responses by upstream address."""
        self.total = self.errors = 0
        self._matches = matches
        self._log = log
        self._end = self._size()

    def read(self) -> None:
        """Count the responses logged since the last call; leave an incomplete line to the next call."""
        if self._size() < self._end:  # rotated; the last lines of the old file are not counted
            self._end = 0
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._end)
            text = file.read(MAX_BYTES)
        complete = text[: text.rfind(b"\n") + 1]
        self._end += len(complete)
        # splitlines() would also split at characters that a client may send within a line, such as U+2028.
        for line in complete.decode(errors="replace").split("\n"):
            parsed = parse_line(line)
            if parsed and any(map(self._matches, parsed[1])):
                self.total += 1
                self.errors += parsed[0].startswith("5")

    @property
    def error_percentage(self) -> float:
        """The percentage of errors; 0 without responses."""
        return 100 * self.errors / self.total if self.total else 0

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0
