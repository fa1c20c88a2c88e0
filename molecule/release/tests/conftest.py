"""What the tests of this scenario share: clients of both hosts, and the table of what they noticed at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from testinfra.host import Host

from tests.support import remote
from tests.support.load import Clients, Load, Result, table
from tests.support.remote import address

#: Seconds between two requests of a client: with as many clients as there are, the processors are left to what is tested.
PACE = {"pause": 0.8}

RESULTS = pytest.StashKey[dict[str, Result]]()


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    """Return the hosts by their names."""
    return remote.hosts()


@pytest.fixture(scope="session")
def clients(pytestconfig: pytest.Config, hosts: dict[str, Host]) -> Clients:
    """Return a function that keeps a site of both hosts busy; none of its clients may notice what is done meanwhile.

    ``title`` names what is done. With ``reload`` nginx reloads: one that is older than 1.27.4 then closes idle connections,
    and a client may have to repeat a request. ``requests_fail`` and ``websockets_break`` say that what is done is known to do
    this harm. The other options are those of `tests.support.load.Shape`.
    """

    @contextmanager
    def clients(
        title: str, *, reload: bool = False, requests_fail: bool = False, websockets_break: bool = False, **shape: Any
    ) -> Iterator[dict[str, Load]]:
        with ExitStack() as stack:
            loads = {name: stack.enter_context(Load(address(host), **PACE | shape)) for name, host in hosts.items()}
            yield loads
        results = {f"{title}, {name}": load.result for name, load in loads.items()}
        pytestconfig.stash.setdefault(RESULTS, {}).update(results)
        shown = "\n".join(table(results))
        for result in results.values():
            assert result.requests > 100, shown
            assert result.posted > 10, shown
            assert result.messages > 10, shown
            assert (result.lost, result.doubled) == (0, 0), shown
            assert result.failed == 0 or requests_fail, shown
            assert result.cut == 0 or websockets_break, shown
            assert result.repeated == 0 or reload or requests_fail, shown
            # Whatever else is connected again was closed while it was idle.
            assert result.reconnects <= sum(result.closes.values()) or reload or requests_fail, shown

    return clients


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the clients noticed, whether the tests passed or not."""
    results = config.stash.get(RESULTS, {})
    if results:
        terminalreporter.section("what clients noticed")
        for line in table(results):
            terminalreporter.write_line(line)
