"""The load generator detects failures: each test runs a server with one defect."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

from tests.support.load import SLOW, Load, Result, table
from tests.support.pki import Authority

#: Few clients with short pauses keep the tests short.
SHAPE = {"connections": 4, "polls": 1, "websockets": 2, "pause": 0.02}


class Short(RequestHandler):
    def get(self) -> None:
        self.write("here\n")


class Notes(RequestHandler):
    """Stores each note as many times as ``copies`` returns for its number."""

    notes: ClassVar[list[str]] = []
    numbers: ClassVar[Iterator[int]] = itertools.count(1)
    copies: ClassVar[Callable[[int], int]] = lambda _number: 1

    def get(self) -> None:
        self.write("\n".join(self.notes))

    def post(self) -> None:
        self.notes.extend([self.request.body.decode()] * type(self).copies(next(self.numbers)))


class Echo(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


def server(copies: Callable[[int], int] = lambda _number: 1, **handlers: type[RequestHandler]) -> Application:
    notes = type("FreshNotes", (Notes,), {"notes": [], "numbers": itertools.count(1), "copies": staticmethod(copies)})
    paths = {"whoami": Short, "notes": notes, "sleep": Short, "ws": Echo} | handlers
    return Application([(f"/{path}", handler) for path, handler in paths.items()])


@contextmanager
def serving(application: Application, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve an application from another thread, and yield the port."""
    ready, stop, loops = threading.Event(), asyncio.Event(), list[asyncio.AbstractEventLoop]()
    sockets = bind_sockets(0, "127.0.0.1")

    async def serve() -> None:
        HTTPServer(application, ssl_options=tls).add_sockets(sockets)
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield sockets[0].getsockname()[1]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def run_load() -> Iterator[Callable[..., Result]]:
    """Return a function that runs the load generator against a server for a second, and returns the result."""
    with ExitStack() as servers:

        def run_load(application: Application, tls: ssl.SSLContext | None = None, **shape: Any) -> Result:
            port = servers.enter_context(serving(application, tls))
            with Load("127.0.0.1", port=port, **SHAPE | shape) as load:
                time.sleep(1)
            return load.result

        yield run_load


def test_healthy_server_has_no_failures(run_load: Callable[..., Result]) -> None:
    result = run_load(server())
    assert result.requests > 50
    assert result.posted > 10
    assert result.polled > 5
    assert result.messages > 20
    assert (result.failed, result.repeated, result.lost, result.doubled, result.cut) == (0, 0, 0, 0, 0)
    latency = result.latency()
    assert 0 < latency.p50 <= latency.p99 <= latency.highest < 1000
    assert result.latency(end=min(began for began, _ in result.exchanges)).highest == 0
    assert str(result.requests) in "\n".join(table({"healthy": result}))


def test_healthy_server_has_no_failures_over_tls(run_load: Callable[..., Result], tmp_path: Path) -> None:
    files = Authority("test", datetime.now(UTC)).leaf("site.test").write(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files["certificate"], files["key"])
    names = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)

    class Here(Short):
        def get(self) -> None:
            self.write(f"{self.request.protocol} {self.request.host_name}\n")

    result = run_load(server(whoami=Here), tls, scheme="https", host="site.test", expected="https site.test")
    assert set(names) == {"site.test"}
    assert result.requests > 50
    assert result.messages > 20
    assert (result.failed, result.repeated, result.lost, result.doubled, result.cut) == (0, 0, 0, 0, 0)


def test_unexpected_response_body_is_a_failure(run_load: Callable[..., Result]) -> None:
    result = run_load(server(), expected="there")
    assert result.failed > 5
    assert "GET /whoami: b'here\\n' has no there" in result.reasons[0]


def test_end_of_a_disruption_is_measured(run_load: Callable[..., Result]) -> None:
    class Slow(RequestHandler):
        times: ClassVar[list[float]] = []

        async def get(self) -> None:
            if not self.times:
                self.times.append(time.time())
                await asyncio.sleep(SLOW + 0.3)
                self.times.append(time.time())
            elif len(self.times) == 2:
                self.times.append(time.time())
                self.send_error(500)

    began = time.time()
    result = run_load(server(whoami=Slow), connections=1)
    assert result.failed == 1
    assert Slow.times[1] < began + result.recovered_after(began) < Slow.times[2]
    assert result.recovered_after(time.time()) == 0


def test_notes_are_compared_with_a_later_record(run_load: Callable[..., Result]) -> None:
    result = run_load(server(lambda _number: 0), recorded="")
    assert (result.failed, result.lost) == (0, 0)
    _lost, second, *others = result.notes
    result.compare("\n".join([*others, *others[:1], second, "from-elsewhere"]))
    assert (result.posted, result.lost, result.doubled) == (len(others) + 2, 1, 1)


def test_error_status_is_a_failure(run_load: Callable[..., Result]) -> None:
    class Failing(Short):
        def get(self) -> None:
            self.send_error(503)

    result = run_load(server(sleep=Failing))
    assert result.failed > 5
    assert result.polled == 0
    assert "GET /sleep?seconds=5: status 503" in result.reasons[0]


def test_lost_and_duplicate_notes_are_counted(run_load: Callable[..., Result]) -> None:
    result = run_load(server(lambda number: {3: 0, 5: 2, 7: 2}.get(number, 1)))
    assert (result.failed, result.lost, result.doubled) == (0, 1, 2)


def test_request_is_repeated_only_on_a_reused_connection(run_load: Callable[..., Result]) -> None:
    class Closing(Short):
        responses = 1
        served: ClassVar[list[IOStream]] = []

        def get(self) -> None:
            connection = self.request.connection
            assert isinstance(connection, HTTP1Connection)
            if self.served.count(connection.stream) >= self.responses:
                connection.stream.close()
            else:
                self.served.append(connection.stream)
                self.write("here\n")

    class Refusing(Closing):
        responses = 0

    result = run_load(server(whoami=Closing), post="")
    assert result.repeated > 5
    assert result.failed == 0
    result = run_load(server(whoami=Refusing), post="")
    assert result.repeated == 0
    assert "GET /whoami: UnansweredError" in result.reasons[0]


@pytest.mark.parametrize("code", ["1012", "1001", "1000", "broken"])
def test_websocket_close_codes_are_counted(run_load: Callable[..., Result], code: str) -> None:
    class Leaving(Echo):
        def on_message(self, message: str | bytes) -> None:
            assert message
            if code == "broken":
                assert isinstance(self.ws_connection, WebSocketProtocol13)
                assert self.ws_connection.stream
                self.ws_connection.stream.close()
            else:
                self.close(int(code))

    result = run_load(server(ws=Leaving))
    assert set(result.closes) == {code}
    assert result.cut == (0 if code in ("1012", "1001") else result.closes[code])
    assert result.reconnects > 2
    assert result.failed == 0


def test_wrong_websocket_message_is_a_failure(run_load: Callable[..., Result]) -> None:
    class Wrong(Echo):
        def on_message(self, message: str | bytes) -> None:
            self.write_message(f"not {message!r}")

    result = run_load(server(ws=Wrong))
    assert result.failed > 2
    assert """websocket: answered "not '0'" to 0""" in result.reasons[0]
