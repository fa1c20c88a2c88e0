from __future__ import annotations

import itertools
import signal

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline, poll, retry, time_limit


def test_poll_returns_the_first_result_that_satisfies_the_condition() -> None:
    results = iter([1, 2, 3, 4])
    assert poll(lambda: next(results), lambda number: number > 2, timeout=60, interval=0) == 3


def test_poll_queries_at_least_once_and_returns_the_last_result_after_the_timeout() -> None:
    assert poll(lambda: "starting", lambda state: state == "running", timeout=0, interval=60) == "starting"


def test_retry_repeats_a_call_only_while_its_error_is_temporary() -> None:
    errors = iter([OSError("busy"), OSError("busy"), OSError("gone")])

    def call() -> None:
        raise next(errors)

    with pytest.raises(OSError, match="gone"):
        retry(call, OSError, lambda error: "busy" in str(error), timeout=60, interval=0)
    assert retry(lambda: "done", OSError, bool, timeout=0, interval=0) == "done"


def test_retry_raises_the_last_error_after_the_timeout() -> None:
    def call() -> None:
        raise OSError("busy")

    with pytest.raises(OSError, match="busy"):
        retry(call, OSError, lambda _error: True, timeout=0, interval=60)


def test_deadline_counts_down_to_zero() -> None:
    assert 0 < Deadline(60).remaining <= 60
    assert not Deadline(60).expired
    assert Deadline(-1).remaining == 0
    assert Deadline(0).expired


def test_block_beyond_its_time_limit_is_interrupted() -> None:
    with pytest.raises(TimeoutError, match="too long"), time_limit(0.2, "too long"):
        max(number for number in itertools.count())
    with time_limit(0.2, "too long"):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "the limit ends with the block"
