"""Records of ACME orders on a host: what was last issued and what last failed, so that failures back off."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.atomic import stage_file

#: Directory of the records, beside certbot's own files; root only.
DIRECTORY = Path("/etc/letsencrypt/funnel")

#: Failures of the same order without a pause, because a corrected mistake is often tried at once.
FREE_FAILURES = 2

#: Seconds of the first pause; each further failure doubles it up to the maximum. Let's Encrypt refuses an account that has five
#: failed validations of a name within an hour.
FIRST_PAUSE, MAX_PAUSE = 900, 6 * 3600


@dataclass(frozen=True)
class Order:
    """What a certificate was requested with: another order requires another certificate."""

    server: str
    domains: tuple[str, ...]
    challenge: str


@dataclass(frozen=True)
class Failure:
    """Consecutive failures of an order; the times are Unix timestamps."""

    order: Order
    count: int
    at: float
    reason: str
    not_before: float

    def describe(self) -> str:
        """Return when the last attempt was, why it failed, and when the next one may be."""
        pause = f"; the next attempt is possible after {_clock(self.not_before)}" if self.not_before > self.at else ""
        return f"the attempt of {_clock(self.at)} failed{pause}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """The record of one certificate."""

    issued: Order | None = None
    failure: Failure | None = None

    def failed(self, order: Order, reason: str, now: float, retry_after: float = 0.0) -> Record:
        """Return the record after another failure; ``retry_after``: seconds for which the server accepts no order."""
        previous = self.failure.count if self.failure and self.failure.order == order else 0
        excess = previous + 1 - FREE_FAILURES
        pause = min(FIRST_PAUSE * 2 ** (excess - 1), MAX_PAUSE) if excess > 0 else 0
        failure = Failure(order, previous + 1, now, reason, now + max(pause, retry_after))
        return replace(self, failure=failure)

    def rejected(self, order: Order, reason: str, now: float) -> Record:
        """Return the record after an attempt that did not get to the server, and so needs no pause."""
        count = self.failure.count if self.failure and self.failure.order == order else 0
        return replace(self, failure=Failure(order, count, now, reason, now))

    def blocked(self, order: Order, now: float) -> Failure | None:
        """Return the failure that forbids another attempt of the order now; none from the future, before the clock was set."""
        failure = self.failure
        return failure if failure and failure.order == order and failure.at <= now < failure.not_before else None


def record_path(lineage: str, base: Path = Path("/")) -> Path:
    """Return the path of the record of a certificate."""
    return base / DIRECTORY.relative_to("/") / f"{lineage}.json"


def load(path: Path) -> Record:
    """Return the record in a file; an empty one if there is none, or one that cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        failure = data["failure"]
        return Record(
            _order(data["issued"]), Failure(**failure | {"order": _order(failure["order"])}) if failure is not None else None
        )
    except (OSError, ValueError, TypeError, KeyError):
        return Record()


def last_failure(path: Path) -> str:
    """Return the failure of the last order in words; an empty string after a success."""
    failure = load(path).failure
    return failure.describe() if failure else ""


def save(path: Path, record: Record) -> None:
    """Write a record, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = stage_file(path, json.dumps(asdict(record)).encode(), mode=0o600, uid=os.geteuid(), gid=os.getegid())
    staged.replace(path)


def _order(data: dict[str, Any] | None) -> Order | None:
    return None if data is None else Order(data["server"], tuple(data["domains"]), data["challenge"])


def _clock(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(timestamp))
