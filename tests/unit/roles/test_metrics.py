"""The exporter of the processes' metrics, the numbers of one process, and what the examples for Prometheus say."""

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
    """Return a function that makes a process, which answers so whatever it is asked; a silent one does not say that it is all."""
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
            with suppress(BrokenPipeError):  # it is too much
                connection.sendall(answer)
                if not silent:
                    connection.shutdown(socket.SHUT_RDWR)

        yield process


def collect(srv: Path) -> dict[str, float]:
    """Return what the exporter says, by series without the release, which is that of the slot."""
    text = asyncio.run(exporter.collect(srv))
    samples = parse(text)
    for sample in samples:
        if sample.name != "tornado_scrape_errors":
            assert sample.labels["release"].startswith(sample.labels["app"] + sample.labels["slot"])
    return {
        " ".join([sample.name, *(value for name, value in sample.labels.items() if name != "release")]): sample.value
        for sample in samples
    }


def test_each_process_of_each_slot_by_its_labels(process: Callable[..., Path], tmp_path: Path) -> None:
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
    """Return what the exporter makes of the answers of an app's processes."""
    processes = [exporter.Process(Path(), "blog", f'app="blog",process="{number}"') for number in range(len(bodies))]
    answers = [exporter.parse(body.encode(errors="surrogateescape")) for body in bodies]
    return str(exporter.merge(zip(processes, answers, strict=True)))


def test_metrics_of_several_processes_stand_together_under_one_head() -> None:
    text = merged(ONE, ONE.replace("Requests.", "Requests, in the words of another release."))
    lines = [re.sub(r"[{ ].*", "", line) for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        *["tornado_up"] * 2,
        "tornado_scrape_errors",
        *["tornado_requests_total"] * 4,
        *["process_cpu_seconds_total"] * 2,
    ]
    assert text.count("# HELP tornado_requests_total ") == text.count("# TYPE tornado_requests_total ") == 1


def test_all_that_the_runner_says_is_passed_on() -> None:
    class Server:
        statuses = (0,) * len(metrics_module.STATUSES)
        websockets: tuple[()] = ()
        in_flight: tuple[()] = ()
        durations = metrics_module.Histogram()

    metrics = metrics_module.Metrics.__new__(metrics_module.Metrics)
    metrics.server, metrics.start_time, metrics.lag = Server(), 1.0, metrics_module.Histogram()
    assert {(kind, name, meaning) for kind, name, meaning, _value in metrics.families()} == {
        (family.kind, name, family.meaning) for name, family in exporter.FAMILIES.items()
    }
    found = exporter.parse("\n".join(metrics.lines()).encode())
    assert set(found.numbers) == set(exporter.KNOWN)
    assert not found.refused


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
def test_an_answer_that_is_none_is_down(process: Callable[..., Path], tmp_path: Path, answer: bytes) -> None:
    process("shop", "a", 0, answer)
    assert collect(tmp_path) == {"tornado_up shop a 0": 0, "tornado_scrape_errors shop": bool(answer)}


def test_a_process_that_does_not_end_its_answer_is_down_and_holds_up_no_other(
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
def test_a_line_that_speaks_for_others_or_is_none_is_left_out_and_counted(line: str) -> None:
    text = merged(f"process_max_fds 7\n{line}\nprocess_start_time_seconds 8\n")
    assert {(sample.name, sample.labels["app"], sample.value) for sample in parse(text)} == {
        ("tornado_up", "blog", 1),
        ("tornado_scrape_errors", "blog", 1),
        ("process_max_fds", "blog", 7),
        ("process_start_time_seconds", "blog", 8),
    }


@pytest.mark.parametrize("line", ["# TYPE process_max_fds histogram", "# TYPE evil foo", "# HELP process_max_fds \udcff"])
def test_what_a_process_says_of_a_metric_changes_nothing_of_it(line: str) -> None:
    text = merged(f"{line}\nprocess_max_fds 7\n")
    assert [one for one in text.splitlines() if "max_fds" in one] == [
        "# HELP process_max_fds Maximum number of open file descriptors.",
        "# TYPE process_max_fds gauge",
        'process_max_fds{app="blog",process="0"} 7.0',
    ]
    assert "evil" not in text


def test_a_link_in_the_place_of_a_socket_leads_nowhere(process: Callable[..., Path], tmp_path: Path) -> None:
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


def test_buckets_hold_what_is_in_smaller_ones() -> None:
    histogram = metrics_module.Histogram()
    for seconds in (0.001, 0.005, 0.2, 60):
        histogram.observe(seconds)
    samples = histogram.samples()
    assert [samples[f'_bucket{{le="{bound}"}}'] for bound in ("0.005", "0.01", "0.1", "0.25", "10", "+Inf")] == [2, 2, 2, 3, 3, 4]
    assert (samples["_count"], samples["_sum"]) == (4, pytest.approx(60.206))


def test_the_dashboard_asks_for_what_exporters_have() -> None:
    """Whether it is really exported is seen where they run."""
    assert len(list(queries())) > 20
    words = {name for query in queries() for name in re.findall(r"\b[a-z]+_\w+", query)}
    assert words - dashboard_metrics(*PREFIXES) == {"histogram_quantile"}


def test_the_example_for_prometheus_has_the_ports_of_the_roles() -> None:
    root = DOCUMENTS.parents[1]
    ports = yaml.safe_load((root / "roles/metrics/vars/main.yml").read_text())["__metrics_ports"]
    jobs = yaml.safe_load((DOCUMENTS / "prometheus.yml").read_text())["scrape_configs"]
    found = {
        job["job_name"]: {target.rpartition(":")[2] for config in job["static_configs"] for target in config["targets"]}
        for job in jobs
    }
    assert found == {name: {str(port)} for name, port in (ports | {"haproxy": 8405}).items()}
    assert "haproxy_metrics_listen }}:8405" in (root / "roles/haproxy/templates/haproxy.cfg.j2").read_text()
