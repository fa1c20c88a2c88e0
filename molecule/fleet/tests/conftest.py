"""What the tests of this scenario share: the fleet, its clients, and the tables of what they noticed at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.fleet import NAME, SCHEMES, Clients, Fleet, Traffic
from tests.support.load import Load, Result, Shape, table
from tests.support.remote import eventually

#: Seconds after which nobody may notice a fault any more.
WHOLE_AFTER = 3.0

#: Seconds in which what was sent just before is still on its way.
IN_FLIGHT = 0.2

#: Seconds in which an answer has to come.
TIMEOUT = 8.0

PLANNED = pytest.StashKey[dict[str, Result]]()
FAULTS = pytest.StashKey[dict[str, Result]]()


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Return the fleet."""
    return Fleet()


@pytest.fixture(autouse=True)
def whole(fleet: Fleet) -> Iterator[None]:
    """Whatever a test does, the fleet is well afterwards."""
    yield
    eventually(fleet.whole, 60)


@pytest.fixture(scope="session")
def clients(pytestconfig: pytest.Config, fleet: Fleet) -> Clients:
    """Return a function that keeps the site busy by HTTP and HTTPS; ``title`` names what is done meanwhile.

    No client may notice what is planned, but for ``websockets_break``: a balancer cannot tell a websocket that it has to go.
    Of what is done by `Traffic.strike`, only requests in flight may fail, one of each client at most, and not for long. Each
    answer has to tell the client's own address and scheme. The other options are those of `tests.support.load.Shape`.
    """

    @contextmanager
    def clients(title: str, *, websockets_break: bool = False, **shape: Any) -> Iterator[Traffic]:
        options: dict[str, Any] = {"host": NAME, "connections": 8, "polls": 3, "websockets": 3, "pause": 0.2, "recorded": ""}
        options |= {"poll": "/sleep?seconds=3", "timeout": TIMEOUT}
        with ExitStack() as stack:
            loads = {}
            for scheme in SCHEMES:
                expected = f'"remote_ip": "{fleet.client_address}", "protocol": "{scheme}"'
                load = Load(fleet.address, **options | {"scheme": scheme, "expected": expected} | shape)
                loads[scheme] = stack.enter_context(load)
            traffic = Traffic(loads)
            yield traffic
        recorded = fleet.notes() if loads["http"].shape.post == Shape.post else None
        for scheme, load in loads.items():
            if recorded is not None:
                load.result.compare(recorded)
            after = f" (whole after {load.result.whole_after(traffic.struck):.1f} s)" if traffic.struck else ""
            stash = pytestconfig.stash.setdefault(FAULTS if traffic.struck else PLANNED, {})
            stash[f"{title}, {scheme}{after}"] = load.result
        shown = "\n".join(table({scheme: load.result for scheme, load in loads.items()}))
        for load in loads.values():
            result = load.result
            assert result.requests > 100, shown
            assert result.messages > 10, shown
            assert result.posted > 10 or not load.shape.post, shown
            assert result.lost == 0, shown
            if traffic.struck:
                later = [began - traffic.struck for began, _, _ in result.failures]
                assert max(later, default=0.0) < IN_FLIGHT + traffic.lasting, shown
                assert result.failed <= load.shape.clients or traffic.lasting, shown
                assert result.whole_after(traffic.struck) < WHOLE_AFTER, shown
                assert max(began for began, _ in result.exchanges) > traffic.struck + WHOLE_AFTER, shown
            else:
                assert (result.failed, result.doubled) == (0, 0), shown
                assert result.cut == 0 or websockets_break, shown

    return clients


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the clients noticed, whether the tests passed or not."""
    for title, key in (("what clients noticed of what was planned", PLANNED), ("what clients noticed of faults", FAULTS)):
        if results := config.stash.get(key, {}):
            terminalreporter.section(title)
            for line in table(results):
                terminalreporter.write_line(line)
