"""ASGI applications."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tornado.httpclient
import tornado.websocket

from tests.support.metrics import total
from tests.support.runner import TIMESTAMP, XHEADERS, load_generator, write_app

if TYPE_CHECKING:
    from tests.support.runner import Connection, Eventually, Process, Serve

ASGI = """\
    import asyncio, json, logging, os

    async def lifespan(receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        if os.environ.get("FAIL") == "raise":
            raise ValueError("no database")
        if os.environ.get("FAIL") == "message":
            await send({"type": "lifespan.startup.failed", "message": "no disk"})
            return
        if os.environ.get("FAIL") == "both":
            await send({"type": "lifespan.startup.failed", "message": "Traceback"})
            raise ValueError("no queue")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        logging.warning("lifespan shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def websocket(scope, receive, send):
        await receive()
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        logging.warning("disconnected with code %d", message["code"])

    async def read(receive):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("client disconnected")
            body, more = body + message["body"], message.get("more_body", False)
        return body

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        if scope["type"] == "websocket":
            return await websocket(scope, receive, send)
        path, body, status, headers = scope["path"], await read(receive), 200, []
        if path == "/sleep":
            await asyncio.sleep(float(scope["query_string"]))
        elif path == "/fail":
            raise ValueError("no database")
        elif path == "/log":
            logging.getLogger("shop").warning("hello")
        elif path == "/print":
            print("out", flush=True)
        elif path == "/status":
            status = int(scope["query_string"])
        elif path == "/who":
            body = f'{scope["client"][0]} {scope["scheme"]} {scope["root_path"]!r}'.encode()
        elif path == "/whoami":
            body = json.dumps({"pid": os.getpid()}).encode()
        elif path == "/events":
            headers = [(b"content-type", b"text/event-stream")]
        elif path == "/background":
            asyncio.current_task().add_done_callback(lambda _task: logging.warning("background task ended"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if path == "/events":
            await send({"type": "http.response.body", "body": b"data: 1\\n\\n", "more_body": True})
            await asyncio.sleep(float(scope["query_string"] or 0))
        await send({"type": "http.response.body", "body": body})
        if path == "/background":
            await asyncio.sleep(1)

    async def without_lifespan(scope, receive, send):
        if scope["type"] == "lifespan":
            raise ValueError("only HTTP")
        await app(scope, receive, send)

    class CallableObject:
        async def __call__(self, scope, receive, send):
            await app(scope, receive, send)

    class ByRequest:
        def __init__(self, scope, receive, send):
            self.call = app(scope, receive, send)

        def __await__(self):
            return self.call.__await__()

    def make_app(settings=None, debug=False, title=""):
        return app

    async def make_later():
        await asyncio.sleep(0)
        return app

    def decorated(*arguments):
        return app(*arguments)

    def make(*arguments):
        return app

    def wsgi(environ, start_response):
        pass

    instance = CallableObject()
    number = 7
"""

WITHOUT = "raise ModuleNotFoundError"


@pytest.fixture
def asgi(serve: Serve, tmp_path: Path) -> Serve:
    """Return a function that serves an ASGI callable of ``ASGI``."""
    write_app(tmp_path, ASGI)
    return lambda *arguments, **options: serve("--asgi", *arguments, cwd=tmp_path, **{"target": "web:app"} | options)


@pytest.fixture(params=["compiled", "pure"])
def either(request: pytest.FixtureRequest, asgi: Serve, tmp_path: Path) -> Serve:
    """Return `asgi`, with and without the compiled packages that uvicorn uses if they are installed."""
    if request.param == "pure":
        for name in ("httptools", "uvloop"):
            (tmp_path / f"{name}.py").write_text(WITHOUT)
    return asgi


async def open_websocket(process: Process, path: str = "/") -> tornado.websocket.WebSocketClientConnection:
    return await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{process.address}{path}")


def test_applications_and_factories_are_served(asgi: Serve) -> None:
    names = ("instance", "ByRequest", "without_lifespan", "make_app", "make_app()", "make_later", "decorated", "make()")
    processes = [asgi(target=f"web:{name}") for name in names]
    assert [process.fetch("/", b"one").body for process in processes] == [b"one"] * len(names)


def test_other_objects_are_refused(spawn: Serve, tmp_path: Path) -> None:
    expected = "expected an ASGI callable, which takes (scope, receive, send), or a function without arguments that returns one"
    errors = {
        "web:none": f"module web has no none; {expected}",
        "web:number": f"web:number is of type int; {expected}",
        "web:wsgi": f"web:wsgi is of type function; {expected}",
    }
    write_app(tmp_path, ASGI)
    processes = {target: spawn("--port", "0", "--asgi", target=target, cwd=tmp_path) for target in errors}
    for target, process in processes.items():
        assert process.wait() == 1
        assert errors[target] in process.lines[0]


def test_missing_uvicorn_is_reported(spawn: Serve, tmp_path: Path) -> None:
    write_app(tmp_path, ASGI)
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")
    process = spawn("--port", "0", "--asgi", target="web:app", cwd=tmp_path)
    assert process.wait() == 1
    assert "cannot serve an ASGI application: uvicorn is not in the environment" in process.lines[0]


def test_loop_is_selected(serve: Serve, spawn: Serve, tmp_path: Path) -> None:
    """By default, uvloop is used for ASGI applications only."""
    more = """
        async def asgi(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": type(asyncio.get_running_loop()).__module__.encode()})

        class Main(RequestHandler):
            def get(self):
                self.write(type(asyncio.get_running_loop()).__module__)
    """
    write_app(tmp_path, more=more)
    expected = {
        "": b"asyncio.unix_events",
        "--loop=uvloop": b"uvloop",
        "--asgi": b"uvloop",
        "--asgi --loop=asyncio": b"asyncio.unix_events",
    }
    for words, module in expected.items():
        process = serve(*words.split(), target="web:asgi" if "--asgi" in words else "web:make_app", cwd=tmp_path)
        assert process.fetch("/").body == module, words
    (tmp_path / "uvloop.py").write_text(WITHOUT)
    process = spawn("--port", "0", "--loop", "uvloop", target="web:make_app", cwd=tmp_path)
    assert process.wait() == 1
    assert "cannot use --loop uvloop: it is not in the environment" in process.lines[0]


def test_lifespan_events_surround_the_requests(asgi: Serve) -> None:
    process = asgi()
    assert process.fetch("/").status == 200
    assert process.stop() == 0
    assert re.search(r"drained after .*\n.*WARNING root .* lifespan shutdown", process.log)


@pytest.mark.parametrize(
    ("kind", "reason"), [("raise", "ValueError: no database"), ("message", "no disk"), ("both", "ValueError: no queue")]
)
def test_failed_lifespan_startup_prevents_serving(spawn: Serve, tmp_path: Path, kind: str, reason: str) -> None:
    write_app(tmp_path, ASGI)
    process = spawn("--asgi", "--socket", tmp_path / "s", target="web:app", cwd=tmp_path, env={"FAIL": kind})
    assert process.wait() == 1
    assert f"the lifespan startup of web:app failed: {reason}" in process.log
    assert ("Traceback" in process.log) == (kind != "message")
    assert " serving " not in process.log
    assert not (tmp_path / "s").exists()


def test_client_and_scheme_come_from_a_trusted_proxy_only(asgi: Serve, tmp_path: Path) -> None:
    behind_proxy = asgi("--socket", tmp_path / "s")
    assert behind_proxy.fetch("/who", headers=XHEADERS).body == b"192.0.2.1 https ''"
    assert behind_proxy.fetch("/who").body == b"127.0.0.1 http ''"
    behind_proxy.wait_for(
        rf"^{TIMESTAMP} INFO  tornado.access \[pid {behind_proxy.pid}\] 200 GET /who \(192.0.2.1\) \d+\.\d\dms$"
    )
    for value in ("unix:", "1.2.3.4, evil"):
        assert behind_proxy.fetch("/who", headers={"X-Real-Ip": value, "X-Scheme": "gopher"}).body == b"127.0.0.1 http ''"
    assert asgi().fetch("/who", headers=XHEADERS).body == b"127.0.0.1 http ''"
    chain = asgi("--xheaders", "--trusted-downstream", "10.0.0.1,10.0.0.2")
    forwarded = {"X-Forwarded-For": "192.0.2.7, 192.0.2.8, 10.0.0.2,10.0.0.1", "X-Forwarded-Proto": "http, https"}
    assert chain.fetch("/who", headers=forwarded).body == b"192.0.2.8 https ''"


def test_log_lines_end_with_the_request_id(asgi: Serve, tmp_path: Path) -> None:
    process = asgi("--socket", tmp_path / "s")
    process.fetch("/log?a=b", headers={"X-Request-ID": "one"})
    process.wait_for(r"WARNING shop .* hello request=one$")
    process.wait_for(r"INFO  tornado.access .* 200 GET /log\?a=b .* request=one$")
    process.fetch("/fail", headers={"X-Request-ID": "two"})
    process.wait_for(r"ERROR uvicorn.error .* Exception in ASGI application request=two$")
    process.wait_for(r"ERROR tornado.access .* 500 GET /fail .* request=two$")
    assert "ValueError: no database" in process.log
    assert process.fetch("/log", headers={"X-Request-ID": "three four"}).status == 200
    process.wait_for(r"hello$")


def test_larger_bodies_are_refused_with_413(either: Serve) -> None:
    process = either("--max-body-size", "10k")
    assert process.fetch("/", b"x" * 10240).body == b"x" * 10240
    connection = process.connect()
    connection.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10241\r\n\r\n")
    assert connection.sock.recv(99).startswith(b"HTTP/1.1 413 ")
    chunked = process.connect()
    chunked.request("POST", "/", iter([b"x" * 6000, b"x" * 6000]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert chunked.read_response().status == 413
    process.wait_for(r"WARNING tornado.access .* 413 POST / ", times=2)


def test_event_stream_is_sent_at_once_and_not_buffered_by_nginx(asgi: Serve) -> None:
    connection = asgi().connect()
    connection.send_request("/events?5")
    start = time.monotonic()
    response = connection.getresponse()
    assert response.read(9) == b"data: 1\n\n"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert time.monotonic() - start < 4


def test_metrics_include_requests_and_websockets(asgi: Serve, tmp_path: Path, eventually: Eventually) -> None:
    process = asgi("--metrics", tmp_path / "metrics")

    def value(name: str, **labels: str) -> float:
        with contextlib.closing(process.connect(tmp_path / "metrics")) as connection:
            return total(connection.fetch("/metrics").body.decode(), name, **labels)

    for code in (200, 201, 404, 500):
        assert process.fetch(f"/status?{code}").status == code
    assert process.fetch("/fail").status == 500
    assert {status: value("tornado_requests_total", status=status) for status in ("2xx", "4xx", "5xx")} == {
        "2xx": 2,
        "4xx": 1,
        "5xx": 2,
    }
    assert value("tornado_request_duration_seconds_count") == 5
    eventually(lambda: value("tornado_event_loop_lag_seconds_count"))
    slow = process.connect()
    slow.send_request("/sleep?1")
    eventually(lambda: value("tornado_requests_in_progress") == 1)
    eventually(lambda: value("tornado_requests_in_progress") == 0)

    async def talk() -> None:
        websocket = await open_websocket(process)
        assert value("tornado_websockets_open") == 1
        websocket.close()
        await websocket.read_message()

    asyncio.run(talk())
    eventually(lambda: value("tornado_websockets_open") == 0)
    with pytest.raises(tornado.httpclient.HTTPClientError, match="403"):
        asyncio.run(open_websocket(process, "/refuse"))
    process.wait_for("101 GET / ")
    process.wait_for("403 GET /refuse ")


def test_in_flight_requests_finish_and_idle_connections_are_closed(either: Serve, tmp_path: Path) -> None:
    process = either("--socket", tmp_path / "s")
    slow, streaming, used, late, unused, partial, uploading = (process.connect() for _ in range(7))
    for connection in (used, late):
        assert "Connection" not in connection.fetch("/").headers, "kept alive"
    slow.send_request("/sleep?4")
    streaming.send_request("/events?2")
    partial.sock.sendall(b"GET / HTTP/1.1\r\nHost:")
    uploading.sock.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
    time.sleep(0.3)

    begin = time.monotonic()
    process.signal()
    process.wait_for("draining .* 3 in-flight requests")
    late.send_request("/")
    assert late.read_response().headers["Connection"] == "close", "sent before idle connections are closed"
    with pytest.raises(FileNotFoundError):
        process.connect()
    uploading.sock.sendall(b"def")
    assert b"\r\nabcdef\r\n" in read_to_end(uploading)
    for idle in (used, unused):
        assert idle.is_closed_by_server()
    assert time.monotonic() - begin > 0.5, "idle connections have a grace period"
    partial.sock.sendall(b" x\r\n\r\n")
    assert b"connection: close" in read_to_end(partial), "a partially received request is not aborted"
    assert streaming.read_response().body == b"data: 1\n\n"
    assert select.select([slow.sock], [], [], 0.1) == ([], [], []), "shorter than the in-flight request"
    response = slow.read_response()
    assert (response.status, response.headers["Connection"]) == (200, "close")
    assert process.wait() == 0
    assert "lifespan shutdown" in process.log


def read_to_end(connection: Connection) -> bytes:
    """Return what the server sends until it closes the connection, in lower case."""
    return b"".join(iter(lambda: connection.sock.recv(9999), b"")).lower()


def test_websockets_are_closed_with_1012(either: Serve) -> None:
    process = either()

    async def talk() -> list[tuple[int | None, str | None]]:
        websockets = [await open_websocket(process) for _ in range(3)]
        await websockets[0].write_message("hello")
        assert await websockets[0].read_message() == "hello"
        process.signal()
        for each in websockets:
            assert await each.read_message() is None
        return [(each.close_code, each.close_reason) for each in websockets]

    start = time.monotonic()
    assert asyncio.run(talk()) == [(1012, "service restart")] * 3
    assert process.wait() == 0
    assert time.monotonic() - start < 10, "long before the drain timeout"
    assert "3 websockets" in process.log
    assert process.log.count("disconnected with code 1012") == 3
    assert "Traceback" not in process.log


def test_websocket_opened_while_draining_is_closed_with_1012(asgi: Serve) -> None:
    process = asgi()
    early, late = process.connect(), process.connect()
    assert late.fetch("/").status == 200
    early.send_request("/sleep?1")
    time.sleep(0.2)
    process.signal()
    process.wait_for("draining")
    key = base64.b64encode(bytes(16)).decode()
    handshake = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    late.sock.sendall(f"GET /ws HTTP/1.1\r\nHost: x\r\n{handshake}\r\n".encode())
    received = b""
    while b"service restart" not in received:
        part = late.sock.recv(999)
        assert part, received
        received += part
    assert received.startswith(b"HTTP/1.1 101 ")
    assert received.endswith((1012).to_bytes(2, "big") + b"service restart")
    late.close()
    assert early.read_response().status == 200
    assert process.wait() == 0


def test_background_tasks_end_before_the_exit(asgi: Serve) -> None:
    process = asgi()
    assert process.fetch("/background").status == 200
    assert process.stop() == 0
    assert re.search(r"background task ended\n.*drained after .*\n.*lifespan shutdown", process.log)


def test_drain_timeout_aborts_requests_and_shuts_the_application_down(asgi: Serve) -> None:
    process = asgi("--drain", "0.5")
    slow = process.connect()
    slow.send_request("/sleep?50")
    time.sleep(0.2)
    start = time.monotonic()
    assert process.stop() == 0
    assert 0.5 <= time.monotonic() - start < 5
    assert re.search(r"drain timeout reached: aborting 1 in-flight requests\n.*lifespan shutdown", process.log)
    with pytest.raises(ConnectionError):
        slow.read_response()


def test_replacement_loses_no_request(either: Serve, tmp_path: Path) -> None:
    first = either("--socket", tmp_path / "s")
    with load_generator(lambda: first.connect(tmp_path / "s"), 4) as responses:
        time.sleep(0.5)
        second = either("--socket", tmp_path / "s", "--replace", first.pid)
        assert first.wait() == 0
        time.sleep(0.5)
        assert second.popen.poll() is None
    assert set(responses()) == {first.pid, second.pid}
    assert second.fetch("/").status == 200


def test_forked_processes_share_the_socket(asgi: Serve, tmp_path: Path) -> None:
    process = asgi("--socket", tmp_path / "s", "--fork", "2")
    process.wait_for(" serving ", times=2)
    found: set[int] = set()
    end = time.monotonic() + 10
    while len(found) < 2 and time.monotonic() < end:
        found.add(process.fetch("/whoami").json["pid"])
    assert len(found) == 2
    assert process.stop() == 0


def test_changed_code_is_reloaded(either: Serve, tmp_path: Path) -> None:
    process = either("--debug")
    assert process.fetch("/", b"one").body == b"one"
    time.sleep(0.6)
    write_app(tmp_path, ASGI.replace('"body": body}', '"body": b"changed"}'))
    process.wait_for(" serving ", times=2)
    assert process.fetch("/", b"one").body == b"changed"


def test_requests_succeed_after_the_reader_of_the_output_exits(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    """As when supervisord is killed, also with uvloop."""
    read, write = os.pipe()
    process = spawn(
        "--asgi", "--socket", tmp_path / "s", target="web:app", cwd=write_app(tmp_path, ASGI),
        stdout=write, preexec_fn=lambda: os.dup2(1, 2),
    )  # fmt: skip
    os.close(write)
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    assert process.fetch("/print").status == 200
    os.close(read)
    for _ in range(20):
        assert process.fetch("/print").status == 200
        time.sleep(0.02)
    assert process.stop() == 0
