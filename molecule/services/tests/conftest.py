"""Fixtures of the services scenario: the sample app with all its services, and a server that fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.support.flaky import FlakyServer
from tests.support.remote import APP_GROUP, ROOT, Site, address, apps, expect_success, hosts, run_site


def variables(group: str) -> dict[str, Any]:
    """Return the variables of a group in the scenario."""
    found: dict[str, Any] = yaml.safe_load((ROOT / f"molecule/shared/group_vars/{group}.yml").read_text())
    return found


@pytest.fixture(scope="session")
def services() -> dict[str, Any]:
    """Return the ``services`` of the sample app's entry."""
    notes = variables("mongodb")["mongodb_users"]["notes"]
    return {
        "mongodb": {"hosts": ["db"], "database": "notes", "user": "notes", "password": notes["password"]},
        "etcd": {"endpoints": ["http://lock:2379"]},
        "syslog": {"host": "db"},
    }


@pytest.fixture(scope="session")
def flaky_server() -> Iterator[FlakyServer]:
    """Run a server that fails on demand."""
    with FlakyServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def sites() -> dict[str, Site]:
    """Return the sample app's site on each app host."""
    return {name: Site(address(host)) for name, host in hosts().items()}


@pytest.fixture(scope="session")
def serve(
    tmp_path_factory: pytest.TempPathFactory, services: dict[str, Any], flaky_server: FlakyServer, sites: dict[str, Site]
) -> Callable[..., dict[str, Any]]:
    """Return a function that deploys the sample app with two processes per host and returns its variables."""
    own_address = next(iter(sites.values())).client_address

    def serve(**env: Any) -> dict[str, Any]:
        upstream = {"SAMPLE_UPSTREAM": f"http://{own_address}:{flaky_server.server_port}"}
        changed = apps(sample={"processes": 2, "services": services, "env": upstream | env})
        expect_success(run_site(APP_GROUP, tmp_path_factory.mktemp("serve"), changed))
        return changed

    return serve
