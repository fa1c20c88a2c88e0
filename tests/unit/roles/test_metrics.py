"""The exporter of process metrics, the metrics of the runner, and the examples for Prometheus."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml

from tests.support.metrics import DOCUMENTS, PREFIXES, dashboard_metrics, parse, queries
from tests.support.programs import load

exporter = load("exporter", "metrics")
metrics_module = load("runner.metrics")

ONE = """\
# HELP tornado_requests_total Requests.
# TYPE tornado_requests_total counter
tornado_requests_total{status="2xx"} 3
tornado_requests_total{status="5xx"} 0
# HELP process_cpu_seconds_total CPU.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5e-05
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that starts a fake process with a fixed response; a silent one does not close the connection."""
    with ExitStack() as resources:

        def process(app: str, slot: str, number: int, answer: bytes | None, *, silent: bool = False) -> Path:
            place = tmp_path / app / "slots" / slot
            if not place.exists():
                (place / "run").mkdir(parents=True)
                (place / "release").symlink_to(f"../../releases/{app}{slot}0123456789")
            path = place / "run" / f"{number}.metrics"
            with ExitStack() as made:
                listener = made.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(path))
                if answer is not None:
                    listener.listen()
                    resources.enter_context(made.pop_all())
                    threading.Thread(target=serve, args=(listener, answer), kwargs={"silent": silent}, daemon=True).start()
            return path

        def serve(listener: socket.socket, answer: bytes, *, silent: bool) -> None:
            connection = resources.enter_context(listener.accept()[0])
            connection.recv(1000)
            with suppress(BrokenPipeError):  # the exporter stops reading at its limit
                connection.sendall(answer)
                if not silent:
                    connection.shutdown(socket.SHUT_RDWR)

        yield process


def collect(srv: Path) -> dict[str, float]:
    """Return the exported values by series without the release, which is verified."""
    text = asyncio.run(exporter.collect(srv))
    samples = parse(text)
    for sample in samples:
        if sample.name != "tornado_scrape_errors":
            assert sample.labels["release"].startswith(sample.labels["app"] + sample.labels["slot"])
    return {
        " ".join([sample.name, *(value for name, value in sample.labels.items() if name != "release")]): sample.value
        for sample in samples
    }


def test_processes_of_all_slots_are_exported_with_labels(process: Callable[..., Path], tmp_path: Path) -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + ONE.encode()
    process("shop", "a", 0, good)
    process("shop", "b", 10, good)
    process("blog", "a", 0, None)
    (tmp_path / "shop/slots/a/run/0.sock").touch()
    (tmp_path / "other").mkdir()
    assert collect(tmp_path) == {
        "tornado_scrape_errors blog": 0,
        "tornado_scrape_errors shop": 0,
        "tornado_up blog a 0": 0,
        "tornado_up shop a 0": 1,
        "tornado_up shop b 10": 1,
        "tornado_requests_total shop a 0 2xx": 3,
        "tornado_requests_total shop a 0 5xx": 0,
        "tornado_requests_total shop b 10 2xx": 3,
        "tornado_requests_total shop b 10 5xx": 0,
        "process_cpu_seconds_total shop a 0": 1.5e-05,
        "process_cpu_seconds_total shop b 10": 1.5e-05,
    }


def merged(*bodies: str) -> str:
    """Return the exported text for the responses of an app's processes."""
    processes = [exporter.Process(Path(), "blog", f'app="blog",process="{number}"') for number in range(len(bodies))]
    responses = [exporter.parse(body.encode(errors="surrogateescape")) for body in bodies]
    return str(exporter.merge(zip(processes, responses, strict=True)))


def test_samples_are_grouped_by_metric_under_one_header() -> None:
    text = merged(ONE, ONE.replace("Requests.", "Requests, in the words of another release."))
    lines = [re.sub(r"[{ ].*", "", line) for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        *["tornado_up"] * 2,
        "tornado_scrape_errors",
        *["tornado_requests_total"] * 4,
        *["process_cpu_seconds_total"] * 2,
    ]
    assert text.count("# HELP tornado_requests_total ") == text.count("# TYPE tornado_requests_total ") == 1


def test_all_metrics_of_the_runner_are_exported() -> None:
    class Server:
        traffic = metrics_module.Traffic()
        open_websockets = in_flight_requests = 0

    metrics = metrics_module.Metrics.__new__(metrics_module.Metrics)
    metrics.server, metrics.start_time, metrics.lag = Server(), 1.0, metrics_module.Histogram()
    assert {(kind, name, meaning) for kind, name, meaning, _value in metrics.families()} == {
        (family.kind, name, family.meaning) for name, family in exporter.FAMILIES.items()
    }
    found = exporter.parse("\n".join(metrics.lines()).encode())
    assert set(found.values) == set(exporter.SAMPLES)
    assert not found.rejected


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n" + ONE.encode(),
        b"no HTTP\r\n\r\n" + ONE.encode(),
        b"HTTP/1.1 200 OK\r\n\r\n" + ONE.encode() * 8000,
    ],
    ids=["nothing", "500", "no HTTP", "too much"],
)
def test_an_invalid_response_counts_as_down(process: Callable[..., Path], tmp_path: Path, answer: bytes) -> None:
    process("shop", "a", 0, answer)
    assert collect(tmp_path) == {"tornado_up shop a 0": 0, "tornado_scrape_errors shop": bool(answer)}


def test_a_process_that_does_not_finish_its_response_is_down_and_delays_no_other(
    process: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "TIMEOUT", 0.2)
    process("blog", "a", 0, b"HTTP/1.1 200 OK\r\n\r\n" + ONE.encode(), silent=True)
    process("shop", "a", 0, b"HTTP/1.1 200 OK\r\n\r\n" + ONE.encode())
    found = collect(tmp_path)
    assert (found["tornado_up blog a 0"], found["tornado_up shop a 0"]) == (0, 1)


@pytest.mark.parametrize(
    "line",
    [
        'process_open_fds{app="shop"} 1',
        'tornado_requests_total{status="2xx",app="shop"} 1',
        'tornado_requests_total{status="2\\"xx"} 1',
        'tornado_requests_total{status="2xx"} ',
        'tornado_requests_total{status="2xx} 1',
        'tornado_requests_total{status="6xx"} 1',
        'tornado_requests_total{le="1"} 1',
        "tornado_requests_total 1",
        "tornado_request_duration_seconds 1",
        "process_open_fds 1 2 3",
        "process_open_fds 0x1",
        "process_open_fds one",
        "process_open_fds -1",
        "process_open_fds 9e+999",
        f"process_open_fds {'9' * 400}",
        "process_open_fds NaN",
        "process_open_fds +Inf",
        "process_open_fds 1_000",
        "process_open_fds\t1",
        "process_open_fds{} 1",
        "process_max_fds 2",  # once more
        "tornado_up 7",
        "tornado_scrape_errors 0",
        "evil 1",
        "# EOF",
        "\udcff",
        "process_open_fds \udcff",
        "process_open_fds 1\rtornado_up 1",
    ],
)
def test_a_forged_or_malformed_line_is_rejected_and_counted(line: str) -> None:
    text = merged(f"process_max_fds 7\n{line}\nprocess_start_time_seconds 8\n")
    assert {(sample.name, sample.labels["app"], sample.value) for sample in parse(text)} == {
        ("tornado_up", "blog", 1),
        ("tornado_scrape_errors", "blog", 1),
        ("process_max_fds", "blog", 7),
        ("process_start_time_seconds", "blog", 8),
    }


@pytest.mark.parametrize("line", ["# TYPE process_max_fds histogram", "# TYPE evil foo", "# HELP process_max_fds \udcff"])
def test_a_process_cannot_change_the_metadata_of_a_metric(line: str) -> None:
    text = merged(f"{line}\nprocess_max_fds 7\n")
    assert [line for line in text.splitlines() if "max_fds" in line] == [
        "# HELP process_max_fds Maximum number of open file descriptors.",
        "# TYPE process_max_fds gauge",
        'process_max_fds{app="blog",process="0"} 7.0',
    ]
    assert "evil" not in text


def test_a_link_in_place_of_a_socket_is_not_followed(process: Callable[..., Path], tmp_path: Path) -> None:
    process("shop", "a", 0, b"HTTP/1.1 200 OK\r\n\r\n" + ONE.encode())
    (tmp_path / "blog/slots/a/run").mkdir(parents=True)
    (tmp_path / "blog/slots/a/release").symlink_to("../../releases/bloga0123456789")
    (tmp_path / "blog/slots/a/run/0.metrics").symlink_to(tmp_path / "shop/slots/a/run/0.metrics")
    (tmp_path / "blog/slots/a/run/1.metrics").mkdir()
    (tmp_path / "blog/slots/a/run/999.metrics").touch()  # more than a slot can have
    found = collect(tmp_path)
    assert {name: value for name, value in found.items() if " blog" in name} == {
        "tornado_up blog a 0": 0,
        "tornado_up blog a 1": 0,
        "tornado_scrape_errors blog": 2,
    }


def test_buckets_are_cumulative() -> None:
    histogram = metrics_module.Histogram()
    for seconds in (0.001, 0.005, 0.2, 60):
        histogram.observe(seconds)
    samples = histogram.samples()
    assert [samples[f'_bucket{{le="{bound}"}}'] for bound in ("0.005", "0.01", "0.1", "0.25", "10", "+Inf")] == [2, 2, 2, 3, 3, 4]
    assert (samples["_count"], samples["_sum"]) == (4, pytest.approx(60.206))


def test_the_dashboard_queries_existing_metrics() -> None:
    """The molecule scenarios verify that the exporters really export them."""
    assert len(list(queries())) > 20
    words = {name for query in queries() for name in re.findall(r"\b[a-z]+_\w+", query)}
    assert words - dashboard_metrics(*PREFIXES) == {"histogram_quantile"}


def test_the_prometheus_example_has_the_ports_of_the_roles() -> None:
    root = DOCUMENTS.parents[1]
    ports = yaml.safe_load((root / "roles/metrics/vars/main.yml").read_text())["__metrics_ports"]
    jobs = yaml.safe_load((DOCUMENTS / "prometheus.yml").read_text())["scrape_configs"]
    found = {
        job["job_name"]: {target.rpartition(":")[2] for config in job["static_configs"] for target in config["targets"]}
        for job in jobs
    }
    assert found == {name: {str(port)} for name, port in (ports | {"haproxy": 8405}).items()}
    assert "haproxy_metrics_listen }}:8405" in (root / "roles/haproxy/templates/haproxy.cfg.j2").read_text()
