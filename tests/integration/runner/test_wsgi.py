"""WSGI applications."""

from __future__ import annotations

import http.client
import select
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.runner import TIMESTAMP, XHEADERS, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Serve


WSGI = """\
    import logging, sys, threading, time

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        body = environ["wsgi.input"].read() or path.encode()
        headers = [("Content-Type", "text/plain")]
        if path == "/slow":
            time.sleep(3)
        elif path == "/fail":
            raise ValueError("no database")
        elif path == "/exit":
            sys.exit(7)
        elif path == "/log":
            logging.getLogger("shop").warning("hello")
        elif path == "/nothing":
            return [b"no start_response"]
        elif path == "/header":
            headers = [("X-Forged", "a\\r\\nb")]
        elif path == "/who":
            body = " ".join([environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["HTTP_HOST"]]).encode()
        elif path == "/cookies":
            headers += [("Set-Cookie", " csrftoken=one"), ("Set-Cookie", "session=two\\t")]
        elif path == "/stream":
            return Stream(start_response)
        elif path == "/more":
            Stream.more.set()
        elif path == "/events":
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            return iter([b"data: 1\\n\\n"])
        elif path == "/unfinished":
            start_response("200 OK", headers)
            return unfinished()
        elif path == "/written":
            write = start_response("200 OK", headers)
            write(b"one ")
            return [b"two"]
        elif path == "/empty":
            start_response("304 Not Modified", [("ETag", "1")])
            return []
        elif path == "/twice":
            start_response("200 OK", headers)
        start_response("200 OK", headers)
        return [body]

    def unfinished():
        yield b"begun"
        raise ValueError("no more")

    class Stream:
        more = threading.Event()

        def __init__(self, start_response):
            self.thread = threading.current_thread()
            start_response("200 OK", [("Content-Type", "text/plain")])

        def __iter__(self):
            yield b"first"
            yield b""
            self.more.wait(5)
            for _ in range(40):
                yield b"x" * 1_000_000

        def close(self):
            same = threading.current_thread() is self.thread
            logging.getLogger("shop").warning("closed by the same thread: %s", same)

    class CallableObject:
        def __call__(self, environ, start_response):
            return app(environ, start_response)

    class Holder:
        wsgi = staticmethod(app)

    def make_app(config=None, debug=False):
        return app

    def decorated(*arguments):
        return app(*arguments)

    async def asgi(scope, receive, send):
        pass

    number = 7
    instance = CallableObject()
"""


@pytest.fixture
def wsgi(serve: Serve, tmp_path: Path) -> Serve:
    """Return a function that serves a WSGI callable of ``WSGI``."""
    write_app(tmp_path, WSGI)
    return lambda *arguments, **options: serve("--wsgi", *arguments, cwd=tmp_path, **{"target": "web:app"} | options)


def test_slow_request_does_not_block_others(wsgi: Serve) -> None:
    process = wsgi("--threads", "2")
    slow = process.connect()
    slow.send_request("/slow")
    time.sleep(0.1)
    assert process.fetch("/fast").body == b"/fast"
    assert select.select([slow.sock], [], [], 0) == ([], [], [])
    assert slow.read_response().body == b"/slow"


def test_request_waits_for_a_free_thread(wsgi: Serve) -> None:
    process = wsgi("--threads", "2")
    slow = [process.connect() for _ in range(2)]
    for connection in slow:
        connection.send_request("/slow")
    time.sleep(0.2)
    start = time.monotonic()
    assert process.fetch("/fast").body == b"/fast"
    assert time.monotonic() - start > 0.5
    assert [connection.read_response().status for connection in slow] == [200, 200]


def test_requests_in_threads_finish_before_the_exit(wsgi: Serve, tmp_path: Path) -> None:
    process = wsgi("--socket", tmp_path / "s", "--threads", "1")
    slow, waiting, idle = (process.connect() for _ in range(3))
    assert idle.fetch("/").status == 200
    for connection in (slow, waiting):
        connection.send_request("/slow")
    time.sleep(0.2)
    process.signal()
    process.wait_for("draining .* 2 in-flight requests")
    for connection in (slow, waiting):
        response = connection.read_response()
        assert (response.body, response.headers["Connection"]) == (b"/slow", "close")
    assert idle.is_closed_by_server()
    assert process.wait() == 0


def test_exception_returns_500_and_is_logged(wsgi: Serve) -> None:
    process = wsgi("--threads", "1")
    connection = process.connect()
    for path in ("/fail", "/exit", "/nothing", "/header"):
        assert connection.fetch(path).status == 500
        process.wait_for(rf"ERROR tornado.application .* Uncaught exception GET {path} \(127.0.0.1\)")
        process.wait_for(rf"ERROR tornado.access .* 500 GET {path} ")
    assert "ValueError: no database" in process.log
    assert connection.fetch("/").status == 200


def test_response_is_streamed_by_one_thread(wsgi: Serve) -> None:
    process = wsgi("--threads", "2")
    connection = process.connect()
    connection.send_request("/stream")
    response = connection.getresponse()
    assert (response.headers["Transfer-Encoding"], response.headers["Content-Length"]) == ("chunked", None)
    assert response.read(5) == b"first"
    process.fetch("/more")
    assert len(response.read()) == 40_000_000
    process.wait_for(r"closed by the same thread: True")


def test_client_disconnect_ends_the_stream(wsgi: Serve) -> None:
    process = wsgi("--threads", "2")
    connection = process.connect()
    connection.send_request("/stream")
    connection.getresponse()
    connection.close()
    process.fetch("/more")
    process.wait_for(r"closed by the same thread: True")
    process.wait_for(r"Client closed the connection during GET /stream \(127\.0\.0\.1\)")
    assert process.fetch("/next").body == b"/next"


def test_exception_in_a_started_response_aborts_it(wsgi: Serve) -> None:
    process = wsgi()
    with pytest.raises(http.client.IncompleteRead):
        process.fetch("/unfinished")
    process.wait_for(r"ValueError: no more")


def test_http_1_0_response_has_content_length(wsgi: Serve) -> None:
    connection = wsgi().connect()
    connection.sock.sendall(b"GET /events HTTP/1.0\r\nHost: x\r\n\r\n")
    received = b"".join(iter(lambda: connection.sock.recv(9999), b""))
    assert b"Content-Length: 9\r\n" in received
    assert received.endswith(b"\r\n\r\ndata: 1\n\n")


def test_response_headers_conform_to_pep_3333(wsgi: Serve) -> None:
    process = wsgi()
    assert process.fetch("/cookies").headers.get_all("Set-Cookie") == ["csrftoken=one", "session=two"]
    assert process.fetch("/events").headers["X-Accel-Buffering"] == "no"
    assert process.fetch("/written").body == b"one two"
    empty = process.fetch("/empty")
    assert (empty.status, empty.headers["Content-Length"], empty.headers["Content-Type"]) == (304, None, None)
    assert process.fetch("/twice").status == 500


def test_log_lines_of_threads_end_with_the_request_id(wsgi: Serve, tmp_path: Path) -> None:
    process = wsgi("--socket", tmp_path / "s")
    process.fetch("/log", headers={"X-Request-ID": "one"})
    process.wait_for(r"WARNING shop .* hello request=one$")
    process.wait_for(r"200 GET /log .* request=one$")


def test_head_response_has_no_body(wsgi: Serve) -> None:
    connection = wsgi().connect()
    connection.request("HEAD", "/head")
    response = connection.read_response()
    assert (response.status, response.headers["Content-Length"], response.body) == (200, "5", b"")
    assert connection.fetch("/").status == 200


def test_xheaders_body_size_and_access_log_apply(wsgi: Serve, tmp_path: Path) -> None:
    process = wsgi("--socket", tmp_path / "s", "--max-body-size", "10k")
    assert process.fetch("/who", headers=XHEADERS).body == b"192.0.2.1 https localhost"
    process.wait_for(rf"^{TIMESTAMP} INFO  tornado.access \[pid {process.pid}\] 200 GET /who \(192.0.2.1\) \d+\.\d\dms$")
    assert process.fetch("/", b"x" * 10240).body == b"x" * 10240
    connection = process.connect()
    connection.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10241\r\n\r\n")
    assert connection.sock.recv(99).startswith(b"HTTP/1.1 400 ")


def test_changed_code_is_reloaded(wsgi: Serve, tmp_path: Path) -> None:
    process = wsgi("--debug")
    assert process.fetch("/one").body == b"/one"
    time.sleep(0.6)
    write_app(tmp_path, WSGI.replace("[body]", "[b'changed']"))
    process.wait_for(" serving ", times=2)
    assert process.fetch("/one").body == b"changed"


def test_factories_instances_and_nested_attributes_are_served(wsgi: Serve) -> None:
    for target in ("web:instance", "web:Holder.wsgi", "web:make_app", "web:make_app()", "web:decorated"):
        assert wsgi(target=target).fetch("/kind").body == b"/kind"


def test_other_objects_are_refused(spawn: Serve, tmp_path: Path) -> None:
    expected = "expected a WSGI callable, which takes (environ, start_response), or a function without arguments that returns one"
    errors = {
        "web:none": f"module web has no none; {expected}",
        "web:number": f"web:number is of type int; {expected}",
        "web:unfinished": f"web:unfinished returned an object of type generator; {expected}",
        "web:asgi": f"web:asgi is of type function; {expected}",
        "web:tornado": f"web:tornado is of type Application; {expected}",
        "none:app": "cannot import none: no module named none in ",
    }
    write_app(tmp_path, WSGI, "    import tornado.web\n    tornado = tornado.web.Application()")
    processes = {target: spawn("--port", "0", "--wsgi", target=target, cwd=tmp_path) for target in errors}
    for target, process in processes.items():
        assert process.wait() == 1
        assert errors[target] in process.lines[0]
