"""Fixtures of the fleet scenario: the fleet, its clients, and a summary of the load results at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.fleet import NAME, SCHEMES, Clients, Fleet, Traffic
from tests.support.load import Load, Result, Shape, table
from tests.support.remote import eventually

#: Seconds after which clients must not notice a fault any more: HAProxy notices a silent host after at most 1 s (interval) +
#: 1 s (timeout) + 0.3 s (interval after a failure) + 1 s (timeout).
RECOVERY_TIME = 4.0

#: Seconds for which requests sent before a fault are still in flight.
IN_FLIGHT = 0.2

#: Seconds within which each response must arrive.
TIMEOUT = 8.0

PLANNED = pytest.StashKey[dict[str, Result]]()
FAULTS = pytest.StashKey[dict[str, Result]]()


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Return the fleet."""
    return Fleet()


@pytest.fixture(autouse=True)
def assert_fleet_healthy(fleet: Fleet) -> Iterator[None]:
    """Verify that the fleet is healthy after each test."""
    yield
    eventually(fleet.is_healthy, 60)


@pytest.fixture(scope="session")
def clients(pytestconfig: pytest.Config, fleet: Fleet) -> Clients:
    """Return a context manager that puts load on the site over HTTP and HTTPS; ``title`` names the operation under test.

    Planned changes must not be noticed by any client, except with ``websockets_break``: a load balancer cannot ask websockets
    to reconnect. After a fault by `Traffic.inject` only in-flight requests may fail, at most one per client, and only briefly.
    Each response must contain the client's address and scheme. The other options are those of `tests.support.load.Shape`.
    """

    @contextmanager
    def clients(title: str, *, websockets_break: bool = False, **shape: Any) -> Iterator[Traffic]:
        options: dict[str, Any] = {"host": NAME, "connections": 8, "polls": 3, "websockets": 3, "pause": 0.2, "recorded": ""}
        options |= {"poll": "/sleep?seconds=3", "timeout": TIMEOUT}
        with ExitStack() as stack:
            loads = {}
            for scheme in SCHEMES:
                expected = f'"remote_ip": "{fleet.client_address}", "protocol": "{scheme}"'
                load = Load(fleet.floating_ip, **options | {"scheme": scheme, "expected": expected} | shape)
                loads[scheme] = stack.enter_context(load)
            traffic = Traffic(loads)
            yield traffic
        recorded = fleet.notes() if loads["http"].shape.post == Shape.post else None
        for scheme, load in loads.items():
            if recorded is not None:
                load.result.compare(recorded)
            after = f" (recovered after {load.result.recovered_after(traffic.injected_at):.1f} s)" if traffic.injected_at else ""
            stash = pytestconfig.stash.setdefault(FAULTS if traffic.injected_at else PLANNED, {})
            stash[f"{title}, {scheme}{after}"] = load.result
        shown = "\n".join(table({scheme: load.result for scheme, load in loads.items()}))
        for load in loads.values():
            result = load.result
            assert result.requests > 100, shown
            assert result.messages > 10, shown
            assert result.posted > 10 or not load.shape.post, shown
            assert result.lost == 0, shown
            if traffic.injected_at:
                later = [began - traffic.injected_at for began, _, _ in result.failures]
                assert max(later, default=0.0) < IN_FLIGHT + traffic.outage, shown
                assert result.failed <= load.shape.clients or traffic.outage, shown
                assert result.recovered_after(traffic.injected_at) < RECOVERY_TIME, shown
                assert max(began for began, _ in result.exchanges) > traffic.injected_at + RECOVERY_TIME, shown
            else:
                assert (result.failed, result.doubled) == (0, 0), shown
                assert result.cut == 0 or websockets_break, shown

    return clients


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the load results, also after failures."""
    for title, key in (("load results of planned changes", PLANNED), ("load results of faults", FAULTS)):
        if results := config.stash.get(key, {}):
            terminalreporter.section(title)
            for line in table(results):
                terminalreporter.write_line(line)
