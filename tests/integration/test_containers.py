"""The sample app in containers, with its database and lock server, as its compose.yaml describes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import FETCH, Engine
from tests.support.remote import eventually

APP = Path(__file__).parents[2] / "files/sample_app"
IMAGES = dict.fromkeys(("PYTHON_IMAGE", "MONGODB_IMAGE", "ETCD_IMAGE"), "localhost/servers")


class Project:
    """The services of the compose.yaml."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def compose(self, *command: str, network: bool = True) -> str:
        return self.engine.run("podman-compose", *command, cwd=APP, network=network, environment=IMAGES)

    def podman(self, *command: str) -> str:
        return self.engine.run("podman", *command, network=True)

    def container(self, service: str) -> str:
        return self.podman("ps", "--all", "--quiet", f"--filter=label=com.docker.compose.service={service}").strip()

    def inspect(self, service: str) -> dict[str, Any]:
        (state,) = json.loads(self.podman("inspect", self.container(service)))
        return dict(state)

    def fetch(self, path: str, body: object = None, method: str = "GET") -> tuple[int, Any]:
        """Send a request to the published port."""
        sent = [] if body is None else [json.dumps(body)]
        status, text = self.engine.run(sys.executable, "-c", FETCH, method, "5000", path, *sent, network=True).split(" ", 1)
        return int(status), json.loads(text)

    def is_ready(self) -> bool:
        return self.fetch("/readyz")[0] == 200


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """Build the image and start the services."""
    engine = Engine()
    try:
        engine.make_image()
        running = Project(engine)
        running.compose("build", network=False)
        running.compose("up", "--detach")
        eventually(running.is_ready, 120)
        yield running
        running.compose("down", "--volumes")
    finally:
        engine.close()


def test_compose_starts_two_processes_with_database_and_lock_server(project: Project) -> None:
    status, ready = project.fetch("/readyz")
    assert status == 200
    assert {name: ready[name] for name in ("database", "locks")} == {"database": "ok", "locks": "ok"}
    status, document = project.fetch("/documents", {"title": "one", "text": "two"}, "POST")
    assert status == 201
    assert project.fetch(f"/documents/{document['id']}") == (200, document)
    eventually(lambda: len({project.fetch("/whoami")[1]["pid"] for _ in range(4)}) == 2)
    eventually(lambda: project.fetch("/jobs")[1]["runs"])


def test_container_is_healthy_and_unprivileged(project: Project) -> None:
    app = project.container("app")
    project.podman("healthcheck", "run", app)
    status = dict(line.split(":\t", 1) for line in project.podman("exec", app, "cat", "/proc/1/status").splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert [status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")] == ["0" * 16, "0" * 16, "1"]
    assert project.podman("exec", app, "sh", "-c", "touch /opt/sample/x 2>&1 || echo refused").endswith("refused\n")


def test_stop_finishes_in_flight_requests_and_keeps_data(project: Project) -> None:
    _status, document = project.fetch("/documents", {"title": "kept", "text": ""}, "POST")
    with ThreadPoolExecutor() as pool:
        response = pool.submit(project.fetch, "/sleep?seconds=5")
        time.sleep(2)
        project.compose("stop", "app")
        assert response.result()[0] == 200
    state = project.inspect("app")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    project.compose("down")
    project.compose("up", "--detach")
    eventually(project.is_ready, 120)
    assert project.fetch(f"/documents/{document['id']}") == (200, document)
