"""Asking another service, which is flaky."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.sample_app import App
from tests.servers import free_port

Start = Callable[..., App]


class Flaky(BaseHTTPRequestHandler):
    """Answers one request after the other with the next status of the list; 0 hangs up."""

    statuses: list[int]
    asked: list[str]
    url: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            self.close_connection = True
            return
        body = json.dumps({"path": self.path}).encode() if status == 200 else b"<html>"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    Flaky.statuses, Flaky.asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        Flaky.url = f"http://127.0.0.1:{server.server_port}/v1/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Flaky
        server.shutdown()


@pytest.fixture
def app(start: Start, flaky: type[Flaky]) -> App:
    return start(SAMPLE_UPSTREAM=flaky.url)


def test_an_item_is_fetched_after_three_errors_of_several_kinds(app: App, flaky: type[Flaky]) -> None:
    flaky.statuses[:] = [503, 0, 429]
    answer = app.ask("/fetch/one")
    assert (answer.status, answer.json) == (200, {"item": {"path": "/v1/items/one"}})
    assert flaky.asked == ["/v1/items/one"] * 4
    app.wait_for("Retrying ", times=3)


def test_after_four_errors_the_client_is_told(app: App, flaky: type[Flaky]) -> None:
    flaky.statuses[:] = [503] * 9
    answer = app.ask("/fetch/one")
    assert (answer.status, answer.json["error"]["reason"]) == (502, "the upstream does not answer as it should")
    assert len(flaky.asked) == 4


@pytest.mark.parametrize(("status", "told"), [(400, 502), (404, 404), (302, 502)])
def test_what_does_not_pass_is_asked_once(app: App, flaky: type[Flaky], status: int, told: int) -> None:
    flaky.statuses[:] = [status]
    assert app.ask("/fetch/one").status == told
    assert len(flaky.asked) == 1


def test_nobody_listens(start: Start) -> None:
    app = start(SAMPLE_UPSTREAM=f"http://127.0.0.1:{free_port()}")
    assert app.ask("/fetch/one").status == 502
    app.wait_for("Retrying ", times=3)


def test_a_client_cannot_lead_it_elsewhere(app: App, flaky: type[Flaky]) -> None:
    for path in ("..", "%2e%2e", "a%2f..%2fb", "http://other", "a?b", "a%0d%0ab", "@other"):
        app.ask(f"/fetch/{path}")
    assert set(flaky.asked) <= {"/v1/items/a"}
