"""Faulty releases are rejected or rolled back with a clear message, and no request is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients
from tests.support.remote import (
    ROOT,
    apps,
    deploy,
    expect_success,
    find_leftovers,
    processes,
    run_playbook,
    sample_app_source,
)
from tests.support.webhook import Hooks

HOST = "debian12"
testinfra_hosts = [f"ansible://{HOST}"]

#: Short waits and light load, which suffice for failing deploys.
QUICK = {"drain": 1, "processes": 2, "health": {"path": "/healthz", "timeout": 10}}
LIGHT_LOAD = {"poll": "/sleep?seconds=1", "polls": 2, "websockets": 2}

WEB = (ROOT / "files/sample_app/sample_app/web.py").read_text()

#: Faults of a release: lines appended to the sample app's code, and the expected message.
CODE_FAULTS = {
    "fails to import": ("import no_such_module", r"process \d does not stay up.*No module named 'no_such_module'"),
    "crashes after a second": (
        "import os\nimport threading\n\nthreading.Timer(1, os._exit, [3]).start()",
        r"process \d does not stay up",
    ),
    "answers 500": (
        "HealthHandler.get = lambda self: self.send_error(500)",
        r"process \d answered GET /healthz with 500 Internal Server Error.* within 10 s \(health.timeout\).*500 GET /healthz",
    ),
    "never answers": (
        "HealthHandler.get = lambda self: asyncio.sleep(60)",
        r"process \d did not answer GET /healthz within 10 s \(health.timeout\)",
    ),
    "reports another release id": (
        'HealthHandler.get = lambda self: self.write({"release": "0123456789ab"})',
        r"process \d reports the wrong release 0123456789ab at GET /healthz within 10 s",
    ),
}

#: The expected message for each failing hook.
HOOKS = {
    "build": r"hooks.build: sh .* failed; release \w+ is not built \(exit status 3\): no such table",
    "before_switch": r"release \w+ did not go live: hooks.before_switch failed with exit status 3: no such table",
    "after_switch": (
        r"release \w+ was live for \d+ s and was rolled back: hooks.after_switch failed with exit status 3: no such table"
    ),
}


@pytest.fixture(scope="module", autouse=True)
def module_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Deploy a release that drains quickly; restore the scenario's entries after the module."""
    directory = tmp_path_factory.mktemp("own")
    expect_success(deploy("sample", HOST, directory, apps(sample=QUICK)))
    yield
    expect_success(deploy("sample", HOST, directory, {}))


@pytest.fixture(autouse=True)
def assert_host_unchanged(host: Host, tmp_path: Path) -> Iterator[None]:
    """Verify that the test leaves the same processes serving, and no leftovers."""
    before = processes(host, "sample")
    assert len(before) == 2
    yield
    after, leftovers = processes(host, "sample"), find_leftovers(host, "sample")
    if (after, leftovers) != (before, []):
        expect_success(deploy("sample", HOST, tmp_path, apps(sample=QUICK)))  # restore the host for the other tests
    assert (after, leftovers) == (before, [])


def deploy_rejected(directory: Path, notified: Hooks | None = None, **keys: Any) -> str:
    """Deploy the sample app with changed ``keys``, expect a failure, and return the output with plain whitespace and quotes."""
    notifications = [{"webhook": notified.url()}] if notified else []
    variables = apps(sample=QUICK | keys) | {"fleet_notifications": notifications}
    status, output = deploy("sample", HOST, directory, variables)
    assert status != 0, output
    return re.sub(r"\s+", " ", output.replace("''", "'").replace("\\'", "'"))


@pytest.mark.parametrize("fault", CODE_FAULTS)
def test_faulty_release_is_rejected(host: Host, clients: Clients, tmp_path: Path, fault: str) -> None:
    line, message = CODE_FAULTS[fault]
    with clients(fault, **LIGHT_LOAD):
        output = deploy_rejected(tmp_path, **sample_app_source(tmp_path, web=f"{WEB}\n\n{line}\n"))
    assert re.search(rf"tornado_apps.sample: release \w+ did not go live: {message}", output), output
    kept = int(host.check_output("ls /srv/sample/releases | wc -l"))
    assert kept <= 5, "the live, the previous and the three newest releases"


@pytest.mark.parametrize("step", HOOKS)
def test_release_with_failing_hook_is_rejected(clients: Clients, tmp_path: Path, step: str) -> None:
    with clients(f"fails its hook {step}", **LIGHT_LOAD), Hooks() as hooks:
        output = deploy_rejected(tmp_path, hooks, hooks={step: "sh -c 'echo no such table; exit 3'"})
    assert re.search(HOOKS[step], output), output
    assert (hooks.events[0], hooks.events[-1]) == ("start", "failure")
    assert ("undo" in hooks.events) == (step == "after_switch")


def test_unresolvable_requirements_are_rejected(clients: Clients, tmp_path: Path) -> None:
    with clients("requirements that do not resolve", **LIGHT_LOAD):
        output = deploy_rejected(tmp_path, **sample_app_source(tmp_path, requirements="tornado==6.6.1\ntornado==6.5\n"))
    assert "tornado_apps.sample.source: requirements.txt cannot be installed" in output
    assert "tornado==6.5" in output


@pytest.mark.parametrize(
    ("app", "release", "message"),
    [
        ("", "", "app: name apps with -e app=NAME; there are sample, plain"),
        ("sample", "000000000000", "release 000000000000 was never live on a host"),
        ("sample", "rejected", "was never live on a host"),
        ("smaple", "", "tornado_apps: no such app smaple; did you mean sample?"),
    ],
)
def test_rollback_to_release_that_was_never_live_is_rejected(
    host: Host, tmp_path: Path, app: str, release: str, message: str
) -> None:
    if release == "rejected":  # built on the host, but never live
        deploy_rejected(tmp_path, hooks={"before_switch": "false"})
        release = host.check_output("ls -t /srv/sample/releases | head -n 1")
    options = [*(["-e", f"app={app}"] if app else []), *(["-e", f"release={release}"] if release else [])]
    status, output = run_playbook("playbooks/rollback.yml", HOST, *options)
    assert status != 0
    assert message in re.sub(r"\s+", " ", output)
