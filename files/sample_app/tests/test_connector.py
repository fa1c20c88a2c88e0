"""Asking another service, which is flaky."""

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


def test_an_item_is_fetched_after_three_errors_of_several_kinds(app: App, flaky_server: FlakyServer) -> None:
    flaky_server.statuses[ITEM] = [503, 0, 429]
    answer = app.ask("/fetch/one")
    assert (answer.status, answer.json) == (200, {"item": {"path": ITEM}})
    assert {path: len(times) for path, times in flaky_server.request_times.items()} == {ITEM: 4}
    app.wait_for("Retrying ", times=3)


def test_after_four_errors_the_client_is_told(app: App, flaky_server: FlakyServer) -> None:
    flaky_server.statuses[ITEM] = [503] * 9
    answer = app.ask("/fetch/one")
    assert (answer.status, answer.json["error"]["reason"]) == (502, "the upstream does not answer as it should")
    assert len(flaky_server.request_times[ITEM]) == 4
    assert flaky_server.request_times[ITEM][-1] - flaky_server.request_times[ITEM][0] > 0.6, (
        "a pause that doubles: 0.1, 0.2 and 0.4 s at least"
    )


@pytest.mark.parametrize(("status", "told"), [(400, 502), (404, 404), (302, 502)])
def test_what_does_not_pass_is_asked_once(app: App, flaky_server: FlakyServer, status: int, told: int) -> None:
    flaky_server.statuses[ITEM] = [status]
    assert app.ask("/fetch/one").status == told
    assert len(flaky_server.request_times[ITEM]) == 1


def test_nobody_listens(start: Start) -> None:
    app = start(SAMPLE_UPSTREAM=f"http://127.0.0.1:{free_port()}")
    assert app.ask("/fetch/one").status == 502
    app.wait_for("Retrying ", times=3)


def test_a_client_cannot_lead_it_elsewhere(app: App, flaky_server: FlakyServer) -> None:
    for path in ("..", "%2e%2e", "a%2f..%2fb", "http://other", "a?b", "a%0d%0ab", "@other"):
        app.ask(f"/fetch/{path}")
    assert set(flaky_server.request_times) <= {"/v1/items/a"}
