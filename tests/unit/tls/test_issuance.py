from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.tls.issuance import MAX_PAUSE, Order, Record, load, save

ORDER = Order("https://acme.test/dir", ("shop.test",), "http")


def after(failures: int, retry_after: float = 0.0) -> Record:
    """Return the record after consecutive failures at time 1000; the server said ``retry_after`` with the last one."""
    record = Record()
    for number in range(failures):
        record = record.failed(ORDER, "refused", 1000, retry_after if number == failures - 1 else 0)
    return record


@pytest.mark.parametrize(("failures", "pause"), [(1, 0), (2, 0), (3, 900), (4, 1800), (30, MAX_PAUSE)])
def test_pause_doubles_with_each_failure_after_the_second(failures: int, pause: int) -> None:
    record = after(failures)
    assert record.failure
    assert record.failure.not_before == 1000 + pause
    assert record.blocked(ORDER, 1000 + pause) is None
    assert pause == 0 or record.blocked(ORDER, 999 + pause)
    assert record.blocked(ORDER, 999) is None  # the clock was set back


def test_server_can_require_a_longer_pause() -> None:
    record = after(1, retry_after=86_400)
    assert record.blocked(ORDER, 1000 + 86_399)
    assert not record.blocked(ORDER, 1000 + 86_400)


def test_other_order_is_not_paused_and_starts_anew() -> None:
    other = Order(ORDER.server, ("shop.test", "www.shop.test"), "http")
    record = after(5)
    assert record.blocked(other, 1000) is None
    failure = record.failed(other, "refused", 1000).failure
    assert failure
    assert failure.count == 1


def test_order_that_never_reached_the_server_needs_no_pause() -> None:
    failure = after(2).rejected(ORDER, "shop.test does not resolve", 1000).failure
    assert failure
    assert (failure.count, failure.reason) == (2, "shop.test does not resolve")
    assert failure.describe() == "the attempt of 1970-01-01 00:16 UTC failed: shop.test does not resolve"


def test_record_is_private_and_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "funnel/app.shop.json"
    assert load(path) == Record()
    record = Record(ORDER, after(3).failure)
    save(path, record)
    assert load(path) == record
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("{")
    assert load(path) == Record()
