"""Fixtures: real servers, and processes of the app that use them."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import servers
from tests.support.flaky import FlakyServer
from tests.support.sample_app import App

sys.dont_write_bytecode = True  # the demo deploys this directory


@pytest.fixture
def start() -> Iterator[Callable[..., App]]:
    """Return a function that starts the app with options and environment variables, and waits until it serves."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> App:
            app = App(*arguments, **options)
            stack.callback(app.kill)
            return app

        yield start


@pytest.fixture(scope="session")
def mongod_server() -> Iterator[servers.Server]:
    with servers.mongod(auth=True) as server:
        yield server


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[servers.Server]:
    with servers.etcd() as server:
        yield server


def ensure_running(server: servers.Server) -> None:
    server.resume()
    if server.process.poll() is not None:
        server.start()


@pytest.fixture
def mongod(mongod_server: servers.Server) -> Iterator[servers.Server]:
    """Return a database with a user; it runs again after each test."""
    yield mongod_server
    ensure_running(mongod_server)


@pytest.fixture
def etcd(etcd_server: servers.Server) -> Iterator[servers.Server]:
    """Return a lock server; it runs again after each test."""
    yield etcd_server
    ensure_running(etcd_server)


@pytest.fixture
def database(mongod: servers.Server, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment variables for a separate database of the test."""
    user, password = servers.ADMIN
    name = re.sub(r"\W", "_", request.node.name)[-60:]
    return {"MONGODB_URI": f"mongodb://{user}:{password}@127.0.0.1:{mongod.port}/{name}?authSource=admin"}


@pytest.fixture
def locks(etcd: servers.Server, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment variables for separate locks of the test."""
    return {"ETCD_ENDPOINTS": f"http://127.0.0.1:{etcd.port}", "TORNADO_APP": request.node.name}


@pytest.fixture
def flaky_server() -> Iterator[FlakyServer]:
    """Run a server that returns errors on request."""
    with FlakyServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
