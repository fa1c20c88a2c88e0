"""The runner, run for real: each test starts processes of its own and asks them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import http.client
import os
import re
import resource
import select
import signal
import socket
import ssl
import stat
import subprocess
import textwrap
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tornado.httpclient
import tornado.websocket

from tests.support.metrics import asked_for, names, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Connection, Process
    from tests.support.sample_app import Answer

    Serve = Callable[..., Process]
    Eventually = Callable[[Callable[[], Any]], Any]

APP = """\
    import asyncio, logging, time, warnings
    from tornado.ioloop import IOLoop
    from tornado.web import Application, RequestHandler

    class Main(RequestHandler):
        def get(self):
            self.write("one")

    def make_app():
        return Application([("/", Main)])
"""


def write_app(directory: Path, text: str = APP, more: str = "") -> Path:
    """Write an application, ``web:make_app``, and return the directory to serve it from."""
    (directory / "web.py").write_text(textwrap.dedent(text) + textwrap.dedent(more))
    return directory


def is_locked(path: Path) -> bool:
    """Tell whether any process holds the lock of a pid file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


class TestSocket:
    def test_serves_with_mode_660_and_is_removed_at_exit(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "0.sock")
        assert process.ask("/whoami").json["pid"] == process.pid
        assert stat.S_IMODE((tmp_path / "0.sock").stat().st_mode) == 0o660
        assert [path.name for path in tmp_path.iterdir()] == ["0.sock"]
        assert process.stop() == 0
        assert not list(tmp_path.iterdir())

    def test_mode_can_be_chosen(self, serve: Serve, tmp_path: Path) -> None:
        serve("--socket", tmp_path / "0.sock", "--socket-mode", "600")
        assert stat.S_IMODE((tmp_path / "0.sock").stat().st_mode) == 0o600

    def test_name_appears_when_the_socket_listens_and_has_its_mode(self, spawn: Serve, tmp_path: Path) -> None:
        path = tmp_path / "0.sock"
        process = spawn("--socket", path, umask=0)
        while process.popen.poll() is None:
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(FileNotFoundError):
                client.connect(str(path))  # refused, if it were there too early
                break
        assert stat.S_IMODE(path.stat().st_mode) == 0o660

    def test_stale_one_is_replaced(self, serve: Serve, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(tmp_path / "0.sock"))
        assert serve("--socket", tmp_path / "0.sock").ask("/healthz").status == 200

    def test_live_one_is_refused(self, serve: Serve, spawn: Serve, tmp_path: Path) -> None:
        first = serve("--socket", tmp_path / "0.sock")
        second = spawn("--socket", tmp_path / "0.sock")
        assert second.status() == 1
        assert f"cannot listen on {tmp_path}/0.sock: another process listens on it" in second.log
        assert first.ask("/whoami").json["pid"] == first.pid

    def test_other_file_in_its_place_is_left_alone(self, spawn: Serve, tmp_path: Path) -> None:
        (tmp_path / "0.sock").write_text("precious")
        process = spawn("--socket", tmp_path / "0.sock")
        assert process.status() == 1
        assert "it exists and is not a socket" in process.log
        assert (tmp_path / "0.sock").read_text() == "precious"

    def test_name_that_another_took_is_left_alone(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "0.sock")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "new"))
            (tmp_path / "new").rename(tmp_path / "0.sock")
            assert process.stop() == 0
        assert (tmp_path / "0.sock").is_socket()

    def test_directory_that_does_not_exist(self, spawn: Serve, tmp_path: Path) -> None:
        process = spawn("--socket", tmp_path / "none" / "0.sock")
        assert process.status() == 1
        assert process.lines[-1].endswith(f"cannot listen on unix:{tmp_path}/none/0.sock: No such file or directory")

    def test_backlog(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "0.sock", "--backlog", "2")
        process.signal(signal.SIGSTOP)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for client in waiting:
            client.settimeout(0)
        results = [client.connect_ex(str(tmp_path / "0.sock")) for client in waiting]
        process.signal(signal.SIGCONT)
        assert [result == 0 for result in results] == [True, True, True, False, False]


class TestPort:
    def test_serves_on_the_loopback_address(self, serve: Serve) -> None:
        process = serve()
        assert process.ask("/whoami").json["pid"] == process.pid
        assert "sample_app.web:make_app on http://127.0.0.1:" in process.log
        assert f"Tornado {tornado.version}, Python 3." in process.log

    def test_taken_port_is_refused(self, serve: Serve, spawn: Serve) -> None:
        port = serve().place
        second = spawn("--port", str(port))
        assert second.status() == 1
        assert second.lines[-1].endswith(f"cannot listen on http://127.0.0.1:{port}: Address already in use")

    def test_reuse_port_shares_the_load(self, serve: Serve) -> None:
        first = serve("--reuse-port")
        second = serve("--reuse-port", "--port", str(first.place))
        pids = {first.ask("/whoami").json["pid"] for _ in range(60)}
        assert pids == {first.pid, second.pid}

    def test_out_of_files_it_waits_instead_of_spinning(self, serve: Serve) -> None:
        process = serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
        clients = [process.connect() for _ in range(60)]
        process.wait_for("cannot accept connections: Too many open files")
        time.sleep(1)
        assert len(process.lines) < 6
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 1.2, "seconds of CPU, most of them to start"
        for client in clients:
            client.close()
        assert process.ask("/healthz").status == 200


class TestFork:
    def test_children_share_the_socket_and_have_numbers(self, serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
        process = serve("--socket", tmp_path / "s", "--fork", "3", "--pid-file", tmp_path / "pid")
        process.wait_for(" serving ", times=3)

        def children() -> dict[str, int]:
            answers = [process.ask("/whoami").json for _ in range(30)]
            return {answer["process"]: answer["pid"] for answer in answers}

        before = eventually(lambda: (seen := children()) and len(seen) == 3 and seen)
        assert set(before) == {"0", "1", "2"}
        assert len(set(before.values()) - {process.pid}) == 3
        assert int((tmp_path / "pid").read_text()) == process.pid

        os.kill(before["1"], signal.SIGKILL)
        process.wait_for(" serving ", times=4)
        after = eventually(lambda: (seen := children()) and len(seen) == 3 and seen)
        assert after["1"] != before["1"]
        assert (after["0"], after["2"]) == (before["0"], before["2"])

        slow = process.connect()
        slow.send_request("/sleep?seconds=0.5")
        time.sleep(0.1)
        assert process.stop() == 0
        assert slow.answer().status == 200
        assert not list(tmp_path.iterdir())

    def test_zero_is_one_per_cpu(self, serve: Serve) -> None:
        process = serve("--fork", "0")
        process.wait_for(" serving ", times=os.cpu_count() or 1)
        assert process.stop() == 0

    def test_children_drain_when_the_parent_is_killed(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--fork", "2", "--pid-file", tmp_path / "pid")
        process.wait_for(" serving ", times=2)
        slow = process.connect()
        slow.send_request("/sleep?seconds=1")
        time.sleep(0.1)
        process.popen.kill()
        assert process.popen.wait(10) == -signal.SIGKILL
        again = serve("--fork", "2", "--pid-file", tmp_path / "pid")
        assert again.ask("/healthz").status == 200, "the lock was the parent's alone"
        process.wait_for("draining")
        assert slow.answer().status == 200
        process.wait_for("drained", times=2)

    def test_second_signal_kills_the_children(self, serve: Serve) -> None:
        process = serve("--fork", "2")
        process.wait_for(" serving ", times=2)
        slow = process.connect()
        slow.send_request("/sleep?seconds=50")
        time.sleep(0.1)
        process.signal()
        process.wait_for("draining .* 1 in-flight requests")
        assert process.stop() == 1
        with pytest.raises(ConnectionError):
            slow.answer()

    def test_application_that_does_not_import_is_not_tried_forever(self, spawn: Serve, tmp_path: Path) -> None:
        process = spawn("--port", "0", "--fork", "2", target="web:app", cwd=write_app(tmp_path, "1 / 0"))
        assert process.status() == 1
        assert process.log.count("cannot import web: ZeroDivisionError") == 2
        assert "giving up: no child process could serve" in process.lines[-1]


ALL_FOUR = {"X-Real-Ip": "192.0.2.1", "X-Forwarded-For": "192.0.2.2", "X-Scheme": "https", "X-Forwarded-Proto": "http"}


class TestForwardingHeaders:
    @staticmethod
    def seen(process: Process, headers: dict[str, str]) -> tuple[str, str]:
        who = process.ask("/whoami", headers=headers).json
        return who["remote_ip"], who["protocol"]

    def test_believed_on_a_socket(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s")
        assert self.seen(process, ALL_FOUR) == ("192.0.2.1", "https"), "X-Real-Ip and X-Scheme come first"
        forwarded = {"X-Forwarded-For": "192.0.2.3, 192.0.2.2", "X-Forwarded-Proto": "https"}
        assert self.seen(process, forwarded) == ("192.0.2.2", "https"), "the last address is the proxy's word"
        assert self.seen(process, {}) == ("0.0.0.0", "http")
        assert self.seen(process, {"X-Real-Ip": "nonsense", "X-Scheme": "gopher"}) == ("0.0.0.0", "http")

    def test_not_believed_on_a_port(self, serve: Serve) -> None:
        assert self.seen(serve(), ALL_FOUR) == ("127.0.0.1", "http")

    def test_can_be_switched(self, serve: Serve, tmp_path: Path) -> None:
        assert self.seen(serve("--xheaders"), ALL_FOUR) == ("192.0.2.1", "https")
        assert self.seen(serve("--socket", tmp_path / "s", "--no-xheaders"), ALL_FOUR) == ("0.0.0.0", "http")

    def test_trusted_downstream_is_skipped(self, serve: Serve) -> None:
        process = serve("--xheaders", "--trusted-downstream", "10.0.0.8,10.0.0.9")
        assert self.seen(process, {"X-Forwarded-For": "192.0.2.2, 10.0.0.9, 10.0.0.8"})[0] == "192.0.2.2"
        assert self.seen(process, {"X-Forwarded-For": "192.0.2.2, 10.0.0.7"})[0] == "10.0.0.7"
        assert self.seen(process, {"X-Forwarded-For": "10.0.0.9", "X-Real-Ip": "192.0.2.1"})[0] == "192.0.2.1"


class TestEvents:
    def test_nginx_is_asked_to_pass_them_on_at_once(self, serve: Serve) -> None:
        connection = serve().connect()
        connection.send_request("/events")
        assert connection.getresponse().headers["X-Accel-Buffering"] == "no"

    def test_and_nothing_else(self, serve: Serve) -> None:
        assert "X-Accel-Buffering" not in serve().ask("/whoami").headers


class TestRequestIds:
    def test_every_line_about_a_request_ends_with_its_id(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s")
        connection = process.connect()
        connection.ask("/whoami", headers={"X-Request-ID": "one.1-a_b"})
        connection.ask("/sleep?seconds=nonsense", headers={"X-Request-ID": "two"})
        connection.ask("/healthz")
        process.wait_for(r"200 GET /whoami .* request=one.1-a_b$")
        process.wait_for(r"400 GET /sleep.* request=two$")
        process.wait_for(r"200 GET /healthz \([\d.]+\) [\d.]+ms$")

    def test_only_the_word_of_a_proxy_is_taken_and_only_a_word(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s")
        process.ask("/whoami", headers={"X-Request-ID": "a b"})
        process.wait_for(r"200 GET /whoami \([\d.]+\) [\d.]+ms$")
        process = serve()
        process.ask("/whoami", headers={"X-Request-ID": "mine"})
        process.wait_for(r"200 GET /whoami \([\d.]+\) [\d.]+ms$")


class TestLimits:
    def test_body_size(self, serve: Serve) -> None:
        process = serve("--max-body-size", "100k")
        for path in ("/echo", "/upload"):  # the body as a whole, and streamed
            assert process.ask(path, b"x" * 102400).status == 200
            connection = process.connect()
            connection.sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 102401\r\n\r\n".encode())
            assert connection.sock.recv(99).startswith(b"HTTP/1.1 400 ")

    def test_default_body_size_takes_fifty_megabytes(self, serve: Serve) -> None:
        assert serve().ask("/upload", b"x" * (50 << 20)).json["bytes"] == 50 << 20

    def test_idle_timeout(self, serve: Serve) -> None:
        connection = serve("--idle-timeout", "0.2").connect()
        start = time.monotonic()
        assert connection.is_closed_by_server()
        assert 0.15 < time.monotonic() - start < 20


class TestDrain:
    def test_everything_ends_as_it_should(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s")
        slow, idle, late, partial, uploading = (process.connect() for _ in range(5))
        for connection in (idle, late):
            assert "Connection" not in connection.ask("/healthz").headers, "kept alive"
        slow.send_request("/sleep?seconds=4")
        partial.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        uploading.sock.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
        time.sleep(0.2)

        begin = time.monotonic()
        process.signal()
        process.wait_for("draining")
        late.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(late)["Connection"] == "close", "asked before idle ones are closed"
        assert late.is_closed_by_server()
        with pytest.raises(FileNotFoundError):
            process.connect()
        uploading.sock.sendall(b"def")
        assert read_answer(uploading)["Connection"] == "close"
        assert idle.is_closed_by_server()
        assert time.monotonic() - begin > 0.5, "idle ones are given a moment"
        assert select.select([slow.sock], [], [], 0.1) == ([], [], []), "and not as long as what is in progress"
        partial.sock.sendall(b" x\r\n\r\n")
        assert read_answer(partial)["Connection"] == "close", "a request that has begun to arrive is not cut off"
        answer = slow.answer()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert process.status() == 0
        assert "drained after" in process.log

    def test_sigint_and_a_port(self, serve: Serve) -> None:
        process = serve()
        slow = process.connect()
        slow.send_request("/sleep?seconds=0.5")
        time.sleep(0.1)
        process.signal(signal.SIGINT)
        process.wait_for("draining")
        time.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            process.connect()
        assert slow.answer().status == 200
        assert process.status() == 0

    def test_connections_that_wait_to_be_accepted_are_served(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s")
        process.signal(signal.SIGSTOP)
        waiting = [process.connect() for _ in range(900)]  # Tornado accepts 128 at a time
        for connection in waiting:
            connection.send_request("/whoami")
        process.signal()
        process.signal(signal.SIGCONT)
        assert {connection.answer().status for connection in waiting} == {200}
        assert process.status() == 0

    def test_websockets_are_closed_with_1012_at_once(self, serve: Serve) -> None:
        process = serve()

        async def talk() -> list[tuple[int | None, str | None]]:
            urls = [f"ws://127.0.0.1:{process.place}/{path}" for path in ("ws", "ws", "ticks")]
            sockets = [await tornado.websocket.websocket_connect(url) for url in urls]
            await sockets[0].write_message("hello")
            assert await sockets[0].read_message() == "hello"
            process.signal()
            for each in sockets:
                while await each.read_message() is not None:
                    pass
            return [(each.close_code, each.close_reason) for each in sockets]

        start = time.monotonic()
        assert asyncio.run(talk()) == [(1012, "service restart")] * 3
        assert process.status() == 0
        assert time.monotonic() - start < 20, "long before the drain is over"
        assert "3 websockets" in process.log
        assert "Traceback" not in process.log

    def test_websocket_that_is_opened_meanwhile_is_closed_with_1012_too(self, serve: Serve) -> None:
        process = serve()
        early, late = process.connect(), process.connect()
        assert late.ask("/healthz").status == 200
        early.send_request("/sleep?seconds=0.5")
        time.sleep(0.1)
        process.signal()
        process.wait_for("draining")
        handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
        late.sock.sendall(f"GET /ws HTTP/1.1\r\nHost: x\r\n{handshake}\r\n".encode())
        assert late.sock.recv(999).startswith(b"HTTP/1.1 101 ")
        assert late.sock.recv(99)[2:] == (1012).to_bytes(2, "big") + b"service restart"
        late.close()
        assert early.answer().status == 200
        assert process.status() == 0

    def test_ends_when_its_time_is_over(self, serve: Serve) -> None:
        process = serve("--drain", "0.5")
        slow = process.connect()
        slow.send_request("/sleep?seconds=50")
        time.sleep(0.1)
        start = time.monotonic()
        assert process.stop() == 0
        assert 0.5 <= time.monotonic() - start < 20
        assert "drain timeout reached: aborting 1 in-flight requests" in process.log
        with pytest.raises(ConnectionError):
            slow.answer()

    def test_second_signal_ends_it_at_once_and_tidily(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
        process.connect().send_request("/sleep?seconds=50")
        time.sleep(0.1)
        process.signal()
        process.wait_for("draining")
        assert process.stop() == 1
        assert not list(tmp_path.iterdir())

    def test_thread_that_never_ends_does_not_keep_the_process(self, serve: Serve, tmp_path: Path) -> None:
        more = """
            class Main(RequestHandler):
                def get(self):
                    IOLoop.current().run_in_executor(None, time.sleep, 50)
        """
        process = serve("--drain", "1", target="web:make_app", cwd=write_app(tmp_path, more=more))
        assert process.ask("/").status == 200
        start = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - start < 20

    def test_no_request_is_lost_under_load(self, serve: Serve, tmp_path: Path) -> None:
        """As nginx does with unsafe methods, a request that was sent is never sent again, on no connection."""
        old, new = (serve("--socket", tmp_path / name) for name in ("old", "new"))
        link = tmp_path / "current"
        link.symlink_to("old")
        with keep_busy(lambda: old.connect(place=link)) as answers:
            time.sleep(0.5)
            (tmp_path / "next").symlink_to("new")
            (tmp_path / "next").rename(link)
            assert old.stop() == 0
            time.sleep(0.3)
        assert set(answers()) == {old.pid, new.pid}


@contextlib.contextmanager
def keep_busy(connect: Callable[[], Connection], clients: int = 16) -> Iterator[Callable[[], Counter[int]]]:
    """Let clients ask on kept connections, each GET and POST in turn; gives a function that counts the answers by process.

    What fails is never sent again, and raised by that function.
    """
    end = threading.Event()
    results: list[concurrent.futures.Future[Counter[int]]] = []

    def client() -> Counter[int]:
        answered: Counter[int] = Counter()
        connection = None
        while not end.is_set():
            connection = connection or connect()
            who = connection.ask("/whoami")
            assert who.status == 200
            answered[who.json["pid"]] += 1
            if who.headers["Connection"] != "close":
                body = uuid.uuid4().hex.encode()
                echo = connection.ask("/echo", body)
                assert (echo.status, echo.body) == (200, body)
                if echo.headers["Connection"] != "close":
                    continue
            connection.close()
            connection = None
        return answered

    def answers() -> Counter[int]:
        total = sum((result.result() for result in results), Counter())
        assert total.total() > 100
        return total

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results += [pool.submit(client) for _ in range(clients)]
        try:
            yield answers
        finally:
            end.set()


class TestReplace:
    """One process takes the place of another, which it was told of."""

    def test_no_request_is_lost(self, serve: Serve, tmp_path: Path) -> None:
        options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid", "--drain", "10")
        old = serve(*options)
        slow = old.connect()
        slow.send_request("/sleep?seconds=2")
        with keep_busy(old.connect) as answers:
            time.sleep(0.5)
            new = serve(*options, "--replace", str(old.pid))
            new.wait_for(f"replacing pid {old.pid}")
            assert (tmp_path / "pid").read_text() == f"{new.pid}\n"
            assert old.popen.poll() is None, "it drains"
            assert old.status() == 0
            time.sleep(0.3)
        assert set(answers()) == {old.pid, new.pid}
        assert slow.answer().json["pid"] == old.pid
        assert (tmp_path / "pid").read_text() == f"{new.pid}\n"
        assert is_locked(tmp_path / "pid")
        assert new.stop() == 0
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("shared", [["--reuse-port"], []])
    def test_port(self, serve: Serve, tmp_path: Path, shared: list[str]) -> None:
        """A port that is not shared has to be free first; either way what is in progress is answered."""
        options = ("--pid-file", tmp_path / "pid", *shared)
        old = serve(*options)
        slow = old.connect()
        slow.send_request("/sleep?seconds=1.5")
        time.sleep(0.1)
        new = serve(*options, "--port", str(old.place), "--replace", str(old.pid))
        old.wait_for("draining")
        assert old.popen.poll() is None, "it drains"
        time.sleep(0.2)
        assert {new.ask("/whoami").json["pid"] for _ in range(10)} == {new.pid}
        assert slow.answer().status == 200
        assert old.status() == 0
        assert (tmp_path / "pid").read_text() == f"{new.pid}\n"

    def test_websockets_are_told_to_connect_again(self, serve: Serve) -> None:
        old = serve("--reuse-port")

        async def talk() -> int | None:
            socket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{old.place}/ws")
            serve("--reuse-port", "--port", str(old.place), "--replace", str(old.pid))
            while await socket.read_message() is not None:
                pass
            return socket.close_code

        assert asyncio.run(talk()) == 1012

    def test_one_that_is_gone_or_never_was(self, serve: Serve, tmp_path: Path) -> None:
        options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
        old = serve(*options)
        old.signal(signal.SIGKILL)
        assert old.status() == -signal.SIGKILL
        new = serve(*options, "--replace", str(old.pid))
        assert new.ask("/whoami").json["pid"] == new.pid
        assert "replacing" not in new.log

    def test_application_that_fails_leaves_the_old_one_alone(self, serve: Serve, spawn: Serve, tmp_path: Path) -> None:
        options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
        old = serve(*options)
        new = spawn(*options, "--replace", str(old.pid), target="none:app")
        assert new.status() == 1
        assert old.ask("/whoami").json["pid"] == old.pid
        assert (tmp_path / "pid").read_text() == f"{old.pid}\n"
        assert "SIGTERM" not in old.log

    def test_another_one_than_was_told_is_refused(self, serve: Serve, spawn: Serve, tmp_path: Path) -> None:
        options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
        stranger = serve()
        old = serve(*options)
        new = spawn(*options, "--replace", str(stranger.pid))
        assert new.status() == 1
        assert f"already running: pid {old.pid} holds the lock on {tmp_path}/pid" in new.log
        assert {old.ask("/whoami").json["pid"], stranger.ask("/whoami").json["pid"]} == {old.pid, stranger.pid}

    def test_one_that_does_not_stop_is_killed(self, serve: Serve, tmp_path: Path) -> None:
        options = ("--socket", tmp_path / "s", "--drain", "0")
        old = serve(*options)
        old.signal(signal.SIGSTOP)
        new = serve(*options, "--replace", str(old.pid))
        assert new.ask("/whoami").json["pid"] == new.pid
        assert old.status() == -signal.SIGKILL

    def test_several(self, serve: Serve, tmp_path: Path) -> None:
        """A new one that was killed together with supervisord before it had taken over is left behind beside the old one."""
        options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
        old = serve(*options)
        second = serve(*options, "--replace", str(old.pid))
        third = serve(*options, "--replace", str(old.pid), "--replace", str(second.pid))
        assert [old.status(), second.status()] == [0, 0]
        assert third.ask("/whoami").json["pid"] == third.pid
        assert (tmp_path / "pid").read_text() == f"{third.pid}\n"


class TestReaderOfTheOutput:
    def test_is_not_needed_to_serve(self, spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
        """As when supervisord is killed: whatever the application writes must not fail its requests."""
        more = """
            import sys

            class Speak(RequestHandler):
                def get(self):
                    print("out", flush=True)
                    print("err", file=sys.stderr, flush=True)
                    logging.getLogger().error("log")
                    logging.getLogger("shop").info("later")
                    self.write("said")

            def make_app():
                return Application([("/", Speak)])
        """
        read, write = os.pipe()
        env = {"PYTHONUNBUFFERED": "1"}
        process = spawn(
            "--socket", tmp_path / "s", target="web:make_app", cwd=write_app(tmp_path, more=more), env=env,
            stdout=write, preexec_fn=lambda: os.dup2(1, 2),
        )  # fmt: skip
        os.close(write)
        process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        assert process.ask("/").body == b"said"
        assert b"out\n" in os.read(read, 9999)
        os.close(read)
        for _ in range(20):
            assert process.ask("/").body == b"said"
            time.sleep(0.02)
        assert process.stop() == 0


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

    class Kind:
        def __call__(self, environ, start_response):
            return app(environ, start_response)

    class Holder:
        wsgi = staticmethod(app)

    def make_app(config=None):
        return app

    async def asgi(scope, receive, send):
        pass

    number = 7
    instance = Kind()
"""


class TestWsgi:
    @pytest.fixture
    def wsgi(self, serve: Serve, tmp_path: Path) -> Serve:
        """Return a function that serves a WSGI callable of the module above."""
        write_app(tmp_path, WSGI)
        return lambda *arguments, **options: serve("--wsgi", *arguments, cwd=tmp_path, **{"target": "web:app"} | options)

    def test_slow_request_holds_up_no_other(self, wsgi: Serve) -> None:
        process = wsgi("--threads", "2")
        slow = process.connect()
        slow.send_request("/slow")
        time.sleep(0.1)
        assert process.ask("/fast").body == b"/fast"
        assert select.select([slow.sock], [], [], 0) == ([], [], [])
        assert slow.answer().body == b"/slow"

    def test_one_more_than_there_are_threads_waits(self, wsgi: Serve) -> None:
        process = wsgi("--threads", "2")
        slow = [process.connect() for _ in range(2)]
        for connection in slow:
            connection.send_request("/slow")
        time.sleep(0.2)
        start = time.monotonic()
        assert process.ask("/fast").body == b"/fast"
        assert time.monotonic() - start > 0.5
        assert [connection.answer().status for connection in slow] == [200, 200]

    def test_requests_in_threads_are_answered_before_the_end(self, wsgi: Serve, tmp_path: Path) -> None:
        process = wsgi("--socket", tmp_path / "s", "--threads", "1")
        slow, waiting, idle = (process.connect() for _ in range(3))
        assert idle.ask("/").status == 200
        for connection in (slow, waiting):
            connection.send_request("/slow")
        time.sleep(0.2)
        process.signal()
        process.wait_for("draining .* 2 in-flight requests")
        for connection in (slow, waiting):
            answer = connection.answer()
            assert (answer.body, answer.headers["Connection"]) == (b"/slow", "close")
        assert idle.is_closed_by_server()
        assert process.status() == 0

    def test_exception_is_answered_and_logged(self, wsgi: Serve) -> None:
        process = wsgi("--threads", "1")
        connection = process.connect()
        for path in ("/fail", "/exit", "/nothing", "/header"):
            assert connection.ask(path).status == 500
            process.wait_for(rf"ERROR tornado.application .* Uncaught exception GET {path} \(127.0.0.1\)")
            process.wait_for(rf"ERROR tornado.access .* 500 GET {path} ")
        assert "ValueError: no database" in process.log
        assert connection.ask("/").status == 200

    def test_answer_is_streamed_by_the_thread_that_called_the_application(self, wsgi: Serve) -> None:
        process = wsgi("--threads", "2")
        connection = process.connect()
        connection.send_request("/stream")
        answer = connection.getresponse()
        assert (answer.headers["Transfer-Encoding"], answer.headers["Content-Length"]) == ("chunked", None)
        assert answer.read(5) == b"first"
        process.ask("/more")
        assert len(answer.read()) == 40_000_000
        process.wait_for(r"closed by the same thread: True")

    def test_client_that_leaves_ends_the_stream(self, wsgi: Serve) -> None:
        process = wsgi("--threads", "2")
        connection = process.connect()
        connection.send_request("/stream")
        connection.getresponse()
        connection.close()
        process.ask("/more")
        process.wait_for(r"closed by the same thread: True")
        process.wait_for(r"Client closed the connection during GET /stream \(127\.0\.0\.1\)")
        assert process.ask("/next").body == b"/next"

    def test_exception_in_the_middle_of_an_answer_cuts_it(self, wsgi: Serve) -> None:
        process = wsgi()
        with pytest.raises(http.client.IncompleteRead):
            process.ask("/unfinished")
        process.wait_for(r"ValueError: no more")

    def test_old_client_gets_the_whole_answer_with_its_length(self, wsgi: Serve) -> None:
        connection = wsgi().connect()
        connection.sock.sendall(b"GET /events HTTP/1.0\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: connection.sock.recv(9999), b""))
        assert b"Content-Length: 9\r\n" in received
        assert received.endswith(b"\r\n\r\ndata: 1\n\n")

    def test_headers_follow_the_standard(self, wsgi: Serve) -> None:
        process = wsgi()
        assert process.ask("/cookies").headers.get_all("Set-Cookie") == ["csrftoken=one", "session=two"]
        assert process.ask("/events").headers["X-Accel-Buffering"] == "no"
        assert process.ask("/written").body == b"one two"
        empty = process.ask("/empty")
        assert (empty.status, empty.headers["Content-Length"], empty.headers["Content-Type"]) == (304, None, None)
        assert process.ask("/twice").status == 500

    def test_lines_of_threads_end_with_the_id_of_their_request(self, wsgi: Serve, tmp_path: Path) -> None:
        process = wsgi("--socket", tmp_path / "s")
        process.ask("/log", headers={"X-Request-ID": "one"})
        process.wait_for(r"WARNING shop .* hello request=one$")
        process.wait_for(r"200 GET /log .* request=one$")

    def test_head_is_answered_without_the_body(self, wsgi: Serve) -> None:
        connection = wsgi().connect()
        connection.request("HEAD", "/head")
        answer = connection.answer()
        assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "5", b"")
        assert connection.ask("/").status == 200

    def test_forwarding_headers_body_size_and_logs(self, wsgi: Serve, tmp_path: Path) -> None:
        process = wsgi("--socket", tmp_path / "s", "--max-body-size", "10k")
        assert process.ask("/who", headers=ALL_FOUR).body == b"192.0.2.1 https localhost"
        process.wait_for(rf"^{STAMP} INFO  tornado.access \[pid {process.pid}\] 200 GET /who \(192.0.2.1\) \d+\.\d\dms$")
        assert process.ask("/", b"x" * 10240).body == b"x" * 10240
        connection = process.connect()
        connection.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10241\r\n\r\n")
        assert connection.sock.recv(99).startswith(b"HTTP/1.1 400 ")

    def test_changed_code_is_loaded(self, wsgi: Serve, tmp_path: Path) -> None:
        process = wsgi("--debug")
        assert process.ask("/one").body == b"/one"
        time.sleep(0.6)
        write_app(tmp_path, WSGI.replace("[body]", "[b'changed']"))
        process.wait_for(" serving ", times=2)
        assert process.ask("/one").body == b"changed"

    def test_kinds(self, wsgi: Serve) -> None:
        for target in ("web:instance", "web:Holder.wsgi"):
            assert wsgi(target=target).ask("/kind").body == b"/kind"

    def test_what_is_none_is_refused(self, spawn: Serve, tmp_path: Path) -> None:
        expected = "expected a WSGI callable, which takes (environ, start_response)"
        errors = {
            "web:none": f"module web has no none; {expected}",
            "web:number": f"web:number is of type int; {expected}",
            "web:make_app": f"web:make_app is of type function; {expected}",
            "web:asgi": f"web:asgi is of type function; {expected}",
            "web:tornado": f"web:tornado is of type Application; {expected}",
            "none:app": "cannot import none: no module named none in ",
        }
        write_app(tmp_path, WSGI, "    import tornado.web\n    tornado = tornado.web.Application()")
        processes = {target: spawn("--port", "0", "--wsgi", target=target, cwd=tmp_path) for target in errors}
        for target, process in processes.items():
            assert process.status() == 1
            assert errors[target] in process.lines[0]


def read_answer(connection: Connection) -> http.client.HTTPMessage:
    """Read the answer to a request that was written by hand, and return its headers."""
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 200
    response.read()
    return response.headers


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class TestLogs:
    MORE = """
        class Speak(RequestHandler):
            def get(self):
                logging.getLogger().error("first\\n%s forged", time.strftime("%Y"))
                logging.getLogger("shop.cart").warning("ümlaut")
                logging.getLogger("tornado.general").info("general")
                1 / 0

        def make_app():
            logging.basicConfig(level="DEBUG")
            return Application([("/", Main), ("/speak", Speak)])
    """

    def test_every_logger_speaks_one_way(self, serve: Serve, tmp_path: Path) -> None:
        env = {"TORNADO_APP": "shop", "TORNADO_SLOT": "a", "TORNADO_PROCESS": "0", "TORNADO_RELEASE": "1f2e3d4c"}
        process = serve(target="web:make_app", cwd=write_app(tmp_path, more=self.MORE), env=env)
        assert process.ask("/speak").status == 500
        process.wait_for("tornado.access")
        context = rf"\[shop a/0 1f2e3d4c pid {process.pid}\]"
        for pattern in (
            rf"INFO  runner {context} serving web:make_app on http://127\.0\.0\.1:\d+ \(Tornado .*\)",
            rf"ERROR root {context} first",
            rf"WARNING shop\.cart {context} ümlaut",
            rf"INFO  tornado\.general {context} general",
            rf"ERROR tornado\.application {context} Uncaught exception GET /speak \(127\.0\.0\.1\)",
            rf"ERROR tornado\.access {context} 500 GET /speak \(127\.0\.0\.1\) \d+\.\d\dms",
        ):
            assert len([line for line in process.lines if re.fullmatch(f"{STAMP} {pattern}", line)]) == 1, pattern
        assert re.search(r"^    ZeroDivisionError", process.log, re.MULTILINE)
        assert all(re.match(rf"{STAMP} |    ", line) for line in process.lines), "nothing forged, nothing unformatted"

    def test_without_an_environment_only_the_pid_is_said(self, serve: Serve) -> None:
        process = serve()
        process.wait_for(rf"^{STAMP} INFO  runner \[pid {process.pid}\] serving ")

    def test_level(self, spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
        process = spawn("--socket", tmp_path / "s", "--log-level", "warning")
        process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        assert [process.ask(path).status for path in ("/healthz", "/none")] == [200, 404]
        process.wait_for("WARNING tornado.access .* 404 GET /none")
        assert len(process.lines) == 1

    def test_file_is_rotated(self, spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
        log = tmp_path / "web.log"
        process = spawn(
            "--socket", tmp_path / "s", "--log-to", log, "--log-max-bytes", "2k", "--log-backups", "2",
        )  # fmt: skip
        process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        for number in range(100):
            assert process.ask(f"/healthz?{number}").status == 200
        assert process.stop() == 0
        files = sorted(tmp_path.iterdir())
        assert [file.name for file in files] == ["web.log", "web.log.1", "web.log.2"]
        assert all(500 < file.stat().st_size <= 2048 for file in files[1:])
        assert "drained" in log.read_text().splitlines()[-1]
        assert process.lines == []

    def test_each_forked_child_has_a_file(self, spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
        process = spawn("--port", "0", "--fork", "2", "--log-to", tmp_path / "web.log")
        files = [tmp_path / "web.0.log", tmp_path / "web.1.log"]
        eventually(lambda: all(file.exists() and " serving " in file.read_text() for file in files))
        assert process.stop() == 0
        assert "received SIGTERM: stopping" in (tmp_path / "web.log").read_text()

    def test_syslog_beside_stderr(self, spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as syslog:
            syslog.settimeout(10)
            syslog.bind(("127.0.0.1", 0))
            where = f"udp://localhost:{syslog.getsockname()[1]}"
            environment = {"TORNADO_APP": "shop", "TORNADO_PROCESS": "1"}
            process = spawn("--socket", tmp_path / "s", "--log-to", "stderr", "--log-to", where, env=environment)
            first = syslog.recv(9999).decode()
            process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
            process.ask("/none", headers={"X-Request-ID": "9c41f3a7"})
            lines = [first]
            while " 404 GET /none" not in lines[-1]:
                lines.append(syslog.recv(9999).decode())
            assert process.stop() == 0
            lines.append(syslog.recv(9999).decode())
        head = rf"<14>1 {STAMP} {re.escape(socket.gethostname())} shop {process.pid} - - "
        assert re.match(rf"{head}{STAMP} INFO  runner \[shop 1 pid {process.pid}\] serving ", first), "user.info, from this host"
        assert lines[-2].startswith("<12>1 "), "user.warning"
        assert lines[-2].endswith(" request=9c41f3a7")
        assert all(line.partition(" - - ")[2] in process.log for line in lines), "both say the same"

    def test_syslog_gets_what_a_process_that_ends_at_once_has_said(self, spawn: Serve) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as syslog:
            syslog.settimeout(10)
            syslog.bind(("127.0.0.1", 0))
            process = spawn("--port", "0", "--log-to", f"udp://localhost:{syslog.getsockname()[1]}", target="none:app")
            assert process.status() == 1
            assert "CRITICAL runner" in (line := syslog.recv(9999).decode())
        assert line.startswith("<10>1 "), "user.crit"

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "127.0.0.1"])
    def test_syslog_that_cannot_be_reached_keeps_nobody_waiting(
        self, spawn: Serve, tmp_path: Path, eventually: Eventually, host: str
    ) -> None:
        process = spawn("--socket", tmp_path / "s", "--log-to", "stderr", "--log-to", f"udp://{host}:9")
        process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        with contextlib.closing(process.connect()) as connection:
            began = time.monotonic()
            for _ in range(500):
                assert connection.ask("/healthz").status == 200
            assert time.monotonic() - began < 20
        assert process.stop() == 0
        assert len([line for line in process.lines if "cannot log to" in line]) == (host == "no-such-host.invalid"), "said once"

    def test_resolver_that_does_not_answer_keeps_nobody_waiting(
        self, spawn: Serve, tmp_path: Path, eventually: Eventually
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import socket, time\nreal = socket.getaddrinfo\n"
            "def slow(host, *arguments, **options):\n"
            "    time.sleep(30 if host == 'logs.invalid' else 0)\n"
            "    return real(host, *arguments, **options)\n"
            "socket.getaddrinfo = slow\n"
        )
        began = time.monotonic()
        process = spawn("--socket", tmp_path / "s", "--log-to", "udp://logs.invalid:9", env={"PYTHONPATH": str(tmp_path)})
        process.place = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        assert process.ask("/healthz").status == 200
        assert process.stop() == 0
        assert time.monotonic() - began < 25

    def test_file_that_cannot_be_is_refused_at_the_start(self, spawn: Serve) -> None:
        process = spawn("--port", "0", "--log-to", "stderr", "--log-to", "/none/log")
        assert process.status() == 1
        assert process.lines == ["runner: error: cannot log to /none/log: No such file or directory"]

    def test_failure_is_on_stderr_too(self, spawn: Serve, tmp_path: Path) -> None:
        process = spawn("--port", "0", "--log-to", tmp_path / "web.log", target="none:app")
        assert process.status() == 1
        assert len(process.lines) == 1
        assert "runner: error: cannot import none" in process.log
        assert "CRITICAL runner" in (tmp_path / "web.log").read_text()


class TestMetrics:
    STATUS = """
        import time

        class Status(RequestHandler):
            def get(self, code):
                self.set_status(int(code))

        class Block(RequestHandler):
            def get(self):
                time.sleep(2.5)

        def make_app():
            inner = Application([(r"/inner/([0-9]+)", Status)])
            return Application([("/", Main), (r"/([0-9]+)", Status), ("/block", Block), ("/inner/.*", inner)])
    """

    @staticmethod
    def ask(process: Process, path: Path) -> str:
        with contextlib.closing(process.connect(path)) as connection:
            answer: Answer = connection.ask("/metrics")
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4")
            return answer.body.decode()

    def test_requests_are_counted_by_status_once_each(self, serve: Serve, tmp_path: Path) -> None:
        """Those of an application in the application, too, and those of a kept connection each for itself."""
        path = tmp_path / "metrics"
        process = serve("--metrics", path, target="web:make_app", cwd=write_app(tmp_path, more=self.STATUS))
        with contextlib.closing(process.connect()) as connection:
            for code in (200, 201, 204, 304, 302, 404, 400, 500):
                assert connection.ask(f"/{code}").status == code
            assert connection.ask("/inner/403").status == 403
        assert process.ask("/503").status == 503
        text = self.ask(process, path)
        counted = {
            status: total(text, "tornado_requests_total", status=status) for status in ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
        }
        assert counted == {"1xx": 0, "2xx": 3, "3xx": 2, "4xx": 3, "5xx": 2, "none": 0}
        assert total(text, "tornado_request_duration_seconds_count") == 10
        assert total(text, "tornado_request_duration_seconds_bucket", le="+Inf") == 10
        assert 0 < total(text, "tornado_request_duration_seconds_sum") < 10
        assert self.ask(process, path).count('tornado_requests_total{status="2xx"} 3\n') == 1, (
            "what asks for metrics is not counted"
        )
        assert asked_for("tornado_", "process_") - names(text) == {"tornado_up"}, "which is the exporter's"

    def test_what_is_open_and_what_the_process_has(self, serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
        path = tmp_path / "metrics"
        process = serve("--metrics", path)

        def value(name: str, **labels: str) -> float:
            return total(self.ask(process, path), name, **labels)

        async def talk() -> None:
            websocket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{process.place}/ws")
            assert await asyncio.to_thread(value, "tornado_websockets_open") == 1
            websocket.close()
            assert await websocket.read_message() is None

        asyncio.run(talk())
        eventually(lambda: value("tornado_websockets_open") == 0)
        assert value("tornado_requests_total", status="1xx") == 1
        with contextlib.closing(process.connect()) as connection:
            connection.send_request("/sleep?seconds=30")
            eventually(lambda: value("tornado_requests_in_progress") == 1)
        eventually(lambda: value("tornado_requests_in_progress") == 0)
        assert value("tornado_requests_total", status="none") == 1, "the client has gone before there was an answer"
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024
        assert value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)
        open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        assert abs(value("process_open_fds") - open_files) <= 2, "connections that ask come and go"
        assert value("process_max_fds") == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert time.time() - 60 < value("process_start_time_seconds") < time.time()
        assert 0 < value("process_cpu_seconds_total") < 60

    def test_blocked_loop_is_late(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "metrics"
        process = serve("--metrics", path, target="web:make_app", cwd=write_app(tmp_path, more=self.STATUS))
        assert process.ask("/block").status == 200
        text = self.ask(process, path)
        assert 1.4 < total(text, "tornado_event_loop_lag_seconds_sum") < 10
        late = total(text, "tornado_event_loop_lag_seconds_count") - total(text, "tornado_event_loop_lag_seconds_bucket", le="1")
        assert late >= 1

    def test_each_forked_child_answers_for_itself(self, serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
        process = serve("--metrics", tmp_path / "web.metrics", "--fork", "2")
        paths = [tmp_path / "web.0.metrics", tmp_path / "web.1.metrics"]
        eventually(lambda: all(path.is_socket() for path in paths))
        for _ in range(10):
            assert process.ask("/healthz").status == 200
        assert sum(total(self.ask(process, path), "tornado_requests_total", status="2xx") for path in paths) == 10

    def test_socket_stays_and_refuses_when_the_process_has_ended(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "metrics"
        process = serve("--metrics", path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert process.stop() == 0
        assert path.is_socket()
        with pytest.raises(ConnectionRefusedError):
            process.connect(path)
        process = serve("--metrics", path)
        assert total(self.ask(process, path), "tornado_requests_total") == 0, "the next process counts from zero"

    def test_other_file_in_its_place_is_left_alone(self, spawn: Serve, tmp_path: Path) -> None:
        (tmp_path / "metrics").write_text("precious")
        process = spawn("--port", "0", "--metrics", tmp_path / "metrics")
        assert process.status() == 1
        assert f"cannot listen on {tmp_path}/metrics for --metrics: it exists and is not a socket" in process.log
        assert (tmp_path / "metrics").read_text() == "precious"


class TestPidFile:
    def test_is_locked_while_the_process_lives_and_removed_then(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        process = serve("--pid-file", path)
        assert path.read_text() == f"{process.pid}\n"
        assert is_locked(path)
        assert process.stop() == 0
        assert not path.exists()

    def test_stale_one_is_replaced(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "pid").write_text(f"{os.getpid()}, which lives but holds no lock\n")
        process = serve("--pid-file", tmp_path / "pid")
        assert (tmp_path / "pid").read_text() == f"{process.pid}\n"

    def test_live_one_is_refused(self, serve: Serve, spawn: Serve, tmp_path: Path) -> None:
        first = serve("--pid-file", tmp_path / "pid")
        second = spawn("--port", "0", "--pid-file", tmp_path / "pid")
        assert second.status() == 1
        assert f"already running: pid {first.pid} holds the lock on {tmp_path}/pid" in second.log
        assert (tmp_path / "pid").read_text() == f"{first.pid}\n"

    def test_killed_process_can_be_started_again(self, serve: Serve, tmp_path: Path) -> None:
        options = ("--pid-file", tmp_path / "pid", "--socket", tmp_path / "s")
        first = serve(*options)
        first.signal(signal.SIGKILL)
        assert first.status() == -signal.SIGKILL
        second = serve(*options)
        assert (tmp_path / "pid").read_text() == f"{second.pid}\n"
        assert second.ask("/whoami").json["pid"] == second.pid

    def test_directory_that_does_not_exist(self, spawn: Serve, tmp_path: Path) -> None:
        process = spawn("--port", "0", "--pid-file", tmp_path / "none" / "pid")
        assert process.status() == 1
        assert f"cannot use the pid file {tmp_path}/none/pid: No such file or directory" in process.log


class TestDebug:
    def test_changed_code_is_loaded_and_nothing_is_let_go(self, serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
        """Socket, lock and process id stay: no client is refused, and no other process slips in."""
        process = serve(
            "--socket", tmp_path / "s", "--pid-file", tmp_path / "pid", "--watch", "settings.ini", "--debug",
            target="web:make_app", cwd=write_app(tmp_path),
        )  # fmt: skip
        (tmp_path / "settings.ini").write_text("a=1")
        assert process.ask("/").body == b"one"
        time.sleep(0.6)  # the file is looked at before it changes
        write_app(tmp_path, APP.replace('"one"', '"another"'))

        def is_new() -> bool:
            assert is_locked(tmp_path / "pid")
            with contextlib.suppress(ConnectionResetError):  # a request in flight is cut, as with any reload
                return process.ask("/").body == b"another"
            return False

        eventually(is_new)
        process.wait_for(" serving ", times=2)
        assert (tmp_path / "pid").read_text() == f"{process.pid}\n"

        time.sleep(0.6)
        (tmp_path / "settings.ini").write_text("a=22")
        process.wait_for("settings.ini modified; restarting server")
        process.wait_for(" serving ", times=3)
        assert process.ask("/").body == b"another"
        assert process.stop() == 0
        assert not (tmp_path / "s").exists()
        assert not (tmp_path / "pid").exists()

    def test_broken_code_waits_for_the_next_change(self, serve: Serve, tmp_path: Path) -> None:
        process = serve("--debug", target="web:make_app", cwd=write_app(tmp_path))
        time.sleep(0.6)
        write_app(tmp_path, "def make_app(:")
        process.wait_for("cannot import web: SyntaxError: .*; waiting for a change")
        time.sleep(0.6)
        write_app(tmp_path, APP.replace('"one"', '"mended"'))
        process.wait_for(" serving ", times=2)
        assert process.ask("/").body == b"mended"
        assert process.stop() == 0

    def test_settings_are_those_of_an_application_made_for_debugging(self, serve: Serve, tmp_path: Path) -> None:
        more = """
            class Main(RequestHandler):
                def get(self):
                    self.render("page.html")

            class Fail(RequestHandler):
                def get(self):
                    1 / 0

            def make_app():
                return Application([("/", Main), ("/fail", Fail)])
        """
        (tmp_path / "page.html").write_text("old")
        process = serve("--debug", target="web:make_app", cwd=write_app(tmp_path, more=more))
        assert process.ask("/").body == b"old"
        (tmp_path / "page.html").write_text("new")
        assert process.ask("/").body == b"new"
        assert b"ZeroDivisionError" in process.ask("/fail").body

    @pytest.mark.parametrize(
        ("arguments", "env"),
        [(["--fork", "2"], {}), ([], {"TORNADO_PROCESSES": "2"})],
    )
    def test_several_processes_are_refused(self, spawn: Serve, arguments: list[str], env: dict[str, str]) -> None:
        process = spawn("--port", "0", "--debug", *arguments, env=env)
        assert process.status() == 2
        assert "argument --debug: hot reload supports one process only" in process.log


class TestTls:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1",
             "-out", certificate, "-keyout", key],
            check=True, capture_output=True,
        )  # fmt: skip
        return certificate, key

    def test_serves_https(self, serve: Serve, files: tuple[Path, Path]) -> None:
        process = serve("--certificate", files[0], "--key", files[1])
        tls = ssl.create_default_context(cafile=files[0])
        with contextlib.closing(process.connect(tls=tls)) as connection:
            assert connection.ask("/whoami").json["protocol"] == "https"
            process.signal()
            process.wait_for("draining")
            answer: Answer = connection.ask("/whoami")
            assert answer.headers["Connection"] == "close"
        assert process.status() == 0

    def test_files_that_are_none_are_refused(self, spawn: Serve, files: tuple[Path, Path]) -> None:
        process = spawn("--port", "0", "--certificate", files[0], "--key", files[0])
        assert process.status() == 1
        assert f"cannot serve TLS with --certificate {files[0]} --key {files[0]}: " in process.lines[-1]


class TestTarget:
    KINDS = """
        app = make_app()

        async def make_later():
            await asyncio.sleep(0)
            return make_app()

        class Shop(Application):
            def __init__(self):
                super().__init__([("/", Main)])

        number = 7

        def make_nothing():
            pass

        def fail():
            raise ValueError("no database")
    """
    EXPECTED = "expected a tornado.web.Application or a function that returns one"

    def test_kinds(self, serve: Serve, tmp_path: Path) -> None:
        for attribute in ("app", "make_app", "make_later", "Shop"):
            process = serve(target=f"web:{attribute}", cwd=write_app(tmp_path, more=self.KINDS))
            assert process.ask("/").body == b"one"

    def test_one_line_says_what_is_wrong(self, spawn: Serve, tmp_path: Path) -> None:
        errors = {
            "none:app": "cannot import none: no module named none in ",
            "web:none": f"module web has no none; {self.EXPECTED}",
            "web:number": f"web:number is of type int; {self.EXPECTED}",
            "web:make_nothing": f"web:make_nothing returned an object of type NoneType; {self.EXPECTED}",
            "web:fail": "cannot create web:fail: ValueError: no database",
        }
        write_app(tmp_path, more=self.KINDS)
        processes = {target: spawn("--port", "0", target=target, cwd=tmp_path) for target in errors}
        for target, process in processes.items():
            assert process.status() == 1
            assert re.fullmatch(rf"{STAMP} CRITICAL runner \[pid {process.pid}\] {re.escape(errors[target])}.*", process.lines[0])
            assert len(process.lines) == 1 or target == "web:fail"

    def test_traceback_is_of_the_applications_own_code(self, spawn: Serve, tmp_path: Path) -> None:
        errors = {
            "import shop.missing": "cannot import web: ModuleNotFoundError: No module named 'shop'",
            "def broken(:": "cannot import web: SyntaxError: ",
            "import sys; sys.exit('bye')": "cannot import web: SystemExit: bye",
        }
        processes = {}
        for number, text in enumerate(errors):
            (tmp_path / str(number)).mkdir()
            processes[text] = spawn("--port", "0", target="web:app", cwd=write_app(tmp_path / str(number), text))
        for number, (text, process) in enumerate(processes.items()):
            assert process.status() == 1
            assert errors[text] in process.lines[0]
            assert f'File "{tmp_path}/{number}/web.py", line 1' in process.log
            assert "files/runner" not in process.log
            assert "importlib" not in process.log
