"""The load generator notices what goes wrong: each test is a server that does one thing badly."""

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

#: Few clients, who are quick: the tests are to be short.
SHAPE = {"connections": 4, "polls": 1, "websockets": 2, "pause": 0.02}


class Short(RequestHandler):
    def get(self) -> None:
        self.write("here\n")


class Notes(RequestHandler):
    """Keeps each note as many times as ``copies`` says of its turn."""

    notes: ClassVar[list[str]] = []
    turns: ClassVar[Iterator[int]] = itertools.count(1)
    copies: ClassVar[Callable[[int], int]] = lambda _turn: 1

    def get(self) -> None:
        self.write("\n".join(self.notes))

    def post(self) -> None:
        self.notes.extend([self.request.body.decode()] * type(self).copies(next(self.turns)))


class Echo(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


def server(copies: Callable[[int], int] = lambda _turn: 1, **handlers: type[RequestHandler]) -> Application:
    notes = type("FreshNotes", (Notes,), {"notes": [], "turns": itertools.count(1), "copies": staticmethod(copies)})
    paths = {"whoami": Short, "notes": notes, "sleep": Short, "ws": Echo} | handlers
    return Application([(f"/{path}", handler) for path, handler in paths.items()])


@contextmanager
def serving(application: Application, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve an application from another thread; give the port."""
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
def noticed() -> Iterator[Callable[..., Result]]:
    """Return a function that lets the clients talk to a server for a moment, and returns what they noticed."""
    with ExitStack() as servers:

        def noticed(application: Application, tls: ssl.SSLContext | None = None, **shape: Any) -> Result:
            port = servers.enter_context(serving(application, tls))
            with Load("127.0.0.1", port=port, **SHAPE | shape) as load:
                time.sleep(1)
            return load.result

        yield noticed


def test_nothing_when_all_goes_well(noticed: Callable[..., Result]) -> None:
    result = noticed(server())
    assert result.requests > 50
    assert result.posted > 10
    assert result.polled > 5
    assert result.messages > 20
    assert (result.failed, result.repeated, result.lost, result.doubled, result.cut) == (0, 0, 0, 0, 0)
    latency = result.latency()
    assert 0 < latency.p50 <= latency.p99 <= latency.highest < 1000
    assert result.latency(end=min(began for began, _ in result.exchanges)).highest == 0
    assert str(result.requests) in "\n".join(table({"well": result}))


def test_the_same_over_tls(noticed: Callable[..., Result], tmp_path: Path) -> None:
    files = Authority("test", datetime.now(UTC)).leaf("site.test").write(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files["certificate"], files["key"])
    names = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)

    class Here(Short):
        def get(self) -> None:
            self.write(f"{self.request.protocol} {self.request.host_name}\n")

    result = noticed(server(whoami=Here), tls, scheme="https", host="site.test", expected="https site.test")
    assert set(names) == {"site.test"}
    assert result.requests > 50
    assert result.messages > 20
    assert (result.failed, result.repeated, result.lost, result.doubled, result.cut) == (0, 0, 0, 0, 0)


def test_answers_that_say_something_else(noticed: Callable[..., Result]) -> None:
    result = noticed(server(), expected="there")
    assert result.failed > 5
    assert "GET /whoami: b'here\\n' has no there" in result.reasons[0]


def test_when_all_is_well_again(noticed: Callable[..., Result]) -> None:
    class Held(RequestHandler):
        held: ClassVar[list[float]] = []

        async def get(self) -> None:
            if not self.held:
                self.held.append(time.time())
                await asyncio.sleep(SLOW + 0.3)
                self.held.append(time.time())
            elif len(self.held) == 2:
                self.held.append(time.time())
                self.send_error(500)

    began = time.time()
    result = noticed(server(whoami=Held), connections=1)
    assert result.failed == 1
    assert Held.held[1] < began + result.whole_after(began) < Held.held[2]
    assert result.whole_after(time.time()) == 0


def test_notes_that_whoever_has_the_result_looks_for(noticed: Callable[..., Result]) -> None:
    result = noticed(server(lambda _turn: 0), recorded="")
    assert (result.failed, result.lost) == (0, 0)
    _lost, second, *others = result.notes
    result.compare("\n".join([*others, *others[:1], second, "from-elsewhere"]))
    assert (result.posted, result.lost, result.doubled) == (len(others) + 2, 1, 1)


def test_answers_that_are_no_success(noticed: Callable[..., Result]) -> None:
    class Failing(Short):
        def get(self) -> None:
            self.send_error(503)

    result = noticed(server(sleep=Failing))
    assert result.failed > 5
    assert result.polled == 0
    assert "GET /sleep?seconds=5: status 503" in result.reasons[0]


def test_notes_that_are_lost_or_doubled(noticed: Callable[..., Result]) -> None:
    result = noticed(server(lambda turn: {3: 0, 5: 2, 7: 2}.get(turn, 1)))
    assert (result.failed, result.lost, result.doubled) == (0, 1, 2)


def test_a_connection_that_is_closed_under_a_request_is_repeated_once_and_a_new_one_never(noticed: Callable[..., Result]) -> None:
    class Cutting(Short):
        answers = 1
        answered: ClassVar[list[IOStream]] = []

        def get(self) -> None:
            connection = self.request.connection
            assert isinstance(connection, HTTP1Connection)
            if self.answered.count(connection.stream) >= self.answers:
                connection.stream.close()
            else:
                self.answered.append(connection.stream)
                self.write("here\n")

    class Refusing(Cutting):
        answers = 0

    result = noticed(server(whoami=Cutting), post="")
    assert result.repeated > 5
    assert result.failed == 0
    result = noticed(server(whoami=Refusing), post="")
    assert result.repeated == 0
    assert "GET /whoami: UnansweredError" in result.reasons[0]


@pytest.mark.parametrize("code", ["1012", "1001", "1000", "broken"])
def test_how_websockets_are_closed(noticed: Callable[..., Result], code: str) -> None:
    class Leaving(Echo):
        def on_message(self, message: str | bytes) -> None:
            assert message
            if code == "broken":
                assert isinstance(self.ws_connection, WebSocketProtocol13)
                assert self.ws_connection.stream
                self.ws_connection.stream.close()
            else:
                self.close(int(code))

    result = noticed(server(ws=Leaving))
    assert set(result.closes) == {code}
    assert result.cut == (0 if code in ("1012", "1001") else result.closes[code])
    assert result.reconnects > 2
    assert result.failed == 0


def test_websockets_that_answer_wrongly(noticed: Callable[..., Result]) -> None:
    class Wrong(Echo):
        def on_message(self, message: str | bytes) -> None:
            self.write_message(f"not {message!r}")

    result = noticed(server(ws=Wrong))
    assert result.failed > 2
    assert """websocket: answered "not '0'" to 0""" in result.reasons[0]
