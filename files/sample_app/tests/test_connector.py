"""Requests to another service that fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.flaky import FlakyServer
from tests.support.sample_app import App
from tests.support.servers import free_port

Start = Callable[..., App]


ITEM = "/v1/items/one"


@pytest.fixture
def app(start: Start, flaky_server: FlakyServer) -> App:
    return start(SAMPLE_UPSTREAM=f"http://127.0.0.1:{flaky_server.server_port}/v1/")


def test_transient_errors_are_retried(app: App, flaky_server: FlakyServer) -> None:
    flaky_server.statuses[ITEM] = [503, 0, 429]
    response = app.fetch("/fetch/one")
    assert (response.status, response.json) == (200, {"item": {"path": ITEM}})
    assert {path: len(times) for path, times in flaky_server.request_times.items()} == {ITEM: 4}
    app.wait_for("Retrying ", times=3)


def test_four_errors_return_502(app: App, flaky_server: FlakyServer) -> None:
    flaky_server.statuses[ITEM] = [503] * 9
    response = app.fetch("/fetch/one")
    assert (response.status, response.json["error"]["reason"]) == (502, "the upstream is unavailable or its response is invalid")
    assert len(flaky_server.request_times[ITEM]) == 4
    assert flaky_server.request_times[ITEM][-1] - flaky_server.request_times[ITEM][0] > 0.6, (
        "exponential backoff: at least 0.1, 0.2 and 0.4 s"
    )


@pytest.mark.parametrize(("status", "returned"), [(400, 502), (404, 404), (302, 502)])
def test_permanent_errors_are_not_retried(app: App, flaky_server: FlakyServer, status: int, returned: int) -> None:
    flaky_server.statuses[ITEM] = [status]
    assert app.fetch("/fetch/one").status == returned
    assert len(flaky_server.request_times[ITEM]) == 1


def test_refused_connection_returns_502(start: Start) -> None:
    app = start(SAMPLE_UPSTREAM=f"http://127.0.0.1:{free_port()}")
    assert app.fetch("/fetch/one").status == 502
    app.wait_for("Retrying ", times=3)


def test_client_cannot_change_the_address(app: App, flaky_server: FlakyServer) -> None:
    for path in ("..", "%2e%2e", "a%2f..%2fb", "http://other", "a?b", "a%0d%0ab", "@other"):
        app.fetch(f"/fetch/{path}")
    assert set(flaky_server.request_times) <= {"/v1/items/a"}
