"""Prometheus metrics."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tornado.websocket

from tests.support.metrics import dashboard_metrics, names, total
from tests.support.runner import write_app

if TYPE_CHECKING:
    from tests.support.runner import Eventually, Process, Serve
    from tests.support.sample_app import Response


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


def fetch_metrics(process: Process, path: Path) -> str:
    with contextlib.closing(process.connect(path)) as connection:
        response: Response = connection.fetch("/metrics")
        assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4")
        return response.body.decode()


def test_requests_are_counted_once_by_status(serve: Serve, tmp_path: Path) -> None:
    """Requests of a nested application and each request of a keep-alive connection are included."""
    path = tmp_path / "metrics"
    process = serve("--metrics", path, target="web:make_app", cwd=write_app(tmp_path, more=STATUS))
    with contextlib.closing(process.connect()) as connection:
        for code in (200, 201, 204, 304, 302, 404, 400, 500):
            assert connection.fetch(f"/{code}").status == code
        assert connection.fetch("/inner/403").status == 403
    assert process.fetch("/503").status == 503
    text = fetch_metrics(process, path)
    counted = {
        status: total(text, "tornado_requests_total", status=status) for status in ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
    }
    assert counted == {"1xx": 0, "2xx": 3, "3xx": 2, "4xx": 3, "5xx": 2, "none": 0}
    assert total(text, "tornado_request_duration_seconds_count") == 10
    assert total(text, "tornado_request_duration_seconds_bucket", le="+Inf") == 10
    assert 0 < total(text, "tornado_request_duration_seconds_sum") < 10
    assert fetch_metrics(process, path).count('tornado_requests_total{status="2xx"} 3\n') == 1, (
        "requests for metrics are not counted"
    )
    assert dashboard_metrics("tornado_", "process_") - names(text) == {"tornado_up"}, "which the exporter adds"


def test_open_connections_and_process_resources_are_reported(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "metrics"
    process = serve("--metrics", path)

    def value(name: str, **labels: str) -> float:
        return total(fetch_metrics(process, path), name, **labels)

    async def talk() -> None:
        websocket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{process.address}/ws")
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
    assert value("tornado_requests_total", status="none") == 1, "the client disconnected before there was a response"
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024
    assert value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)
    open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    assert abs(value("process_open_fds") - open_files) <= 2, "connections for metrics open and close"
    assert value("process_max_fds") == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert time.time() - 60 < value("process_start_time_seconds") < time.time()
    assert 0 < value("process_cpu_seconds_total") < 60


def test_blocked_event_loop_increases_the_lag(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    process = serve("--metrics", path, target="web:make_app", cwd=write_app(tmp_path, more=STATUS))
    assert process.fetch("/block").status == 200
    text = fetch_metrics(process, path)
    assert 1.4 < total(text, "tornado_event_loop_lag_seconds_sum") < 10
    over_a_second = total(text, "tornado_event_loop_lag_seconds_count") - total(
        text, "tornado_event_loop_lag_seconds_bucket", le="1"
    )
    assert over_a_second >= 1


def test_each_forked_child_has_a_metrics_socket(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    process = serve("--metrics", tmp_path / "web.metrics", "--fork", "2")
    paths = [tmp_path / "web.0.metrics", tmp_path / "web.1.metrics"]
    eventually(lambda: all(path.is_socket() for path in paths))
    for _ in range(10):
        assert process.fetch("/healthz").status == 200
    assert sum(total(fetch_metrics(process, path), "tornado_requests_total", status="2xx") for path in paths) == 10


def test_metrics_socket_remains_and_refuses_after_exit(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    process = serve("--metrics", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert process.stop() == 0
    assert path.is_socket()
    with pytest.raises(ConnectionRefusedError):
        process.connect(path)
    process = serve("--metrics", path)
    assert total(fetch_metrics(process, path), "tornado_requests_total") == 0, "the next process starts at zero"


def test_other_file_at_the_metrics_path_is_kept(spawn: Serve, tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("precious")
    process = spawn("--port", "0", "--metrics", tmp_path / "metrics")
    assert process.wait() == 1
    assert f"cannot listen on {tmp_path}/metrics for --metrics: it exists and is not a socket" in process.log
    assert (tmp_path / "metrics").read_text() == "precious"
