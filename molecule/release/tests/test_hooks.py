"""Deploy hooks, and the soak period in which a new release is monitored."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import (
    APP_GROUP,
    ROOT,
    Site,
    address,
    apps,
    deploy,
    find_leftovers,
    processes,
    run_playbook,
    run_site,
    sample_app_source,
)

WEB = (ROOT / "files/sample_app/sample_app/web.py").read_text()

#: A hook that records the target of the live link, which the switch renames.
RECORD_LIVE_LINK = "sh -c 'echo {step} $TORNADO_RELEASE $(readlink ../../../live) $COOKIE_SECRET $(id -un) >> $HOME/hooks'"


@pytest.fixture(scope="module", autouse=True)
def restore_entries(tmp_path_factory: pytest.TempPathFactory, hosts: dict[str, Host]) -> Iterator[None]:
    yield
    # The release of these entries was rolled back from, so another run would not bring it back.
    status, output = run_site(APP_GROUP, tmp_path_factory.mktemp("before"), {}, "-e", "again=true")
    assert status == 0, output
    assert [find_leftovers(host, "sample") for host in hosts.values()] == [[] for _ in hosts]


def take_hook_records(host: Host) -> list[list[str]]:
    """Return the records of the hooks since the last call, each as a list of words, and clear them."""
    lines = host.check_output("cat /srv/sample/shared/hooks; rm -f /srv/sample/shared/hooks").splitlines()
    return [line.split() for line in lines]


def live(host: Host) -> str:
    return host.check_output("readlink /srv/sample/live").strip()


def test_hooks_run_in_order_and_once_hooks_run_before_other_hosts_switch(hosts: dict[str, Host], tmp_path: Path) -> None:
    hooks = {
        "build": "sh -c 'id -un > sample_app/static/built.txt'",
        "before_start": {"command": RECORD_LIVE_LINK.format(step="start"), "once": True},
        "before_switch": {"command": RECORD_LIVE_LINK.format(step="before"), "once": True},
        "after_switch": RECORD_LIVE_LINK.format(step="after"),
    }
    before = {name: live(host) for name, host in hosts.items()}
    status, output = deploy("sample", APP_GROUP, tmp_path, apps(sample={"hooks": hooks}))
    assert status == 0, output
    first, second = hosts.values()
    releases = [Site(address(host)).get("/whoami").json["release"] for host in (first, second)]
    assert take_hook_records(first) == [
        ["start", releases[0], before["debian12"], "not-for-others", "sample"],
        ["before", releases[0], before["debian12"], "not-for-others", "sample"],
        ["after", releases[0], live(first), "not-for-others", "sample"],
    ]
    assert take_hook_records(second) == [["after", releases[1], live(second), "not-for-others", "sample"]]
    assert live(first) != before["debian12"]
    steps = re.findall(r"^(debian1\d): sample is release \w+ in slot [ab]: (.*)$", output, re.MULTILINE)
    assert [name for name, _ in steps] == ["debian12", "debian13"]
    assert [re.sub(r" [\d.]+ s", "", completed) for _, completed in steps] == [
        "clean, before_start, start, health, before_switch, switch, front_door, after_switch, drain, stop, prune",
        "clean, start, health, switch, front_door, after_switch, drain, stop, prune",
    ]
    assert Site(address(second)).get("/static/built.txt").body == b"_sample\n"
    assert "not-for-others" not in output

    status, output = run_playbook("playbooks/rollback.yml", APP_GROUP, "-e", "app=sample")
    assert status == 0, output
    options = ["-e", "app=sample", "-e", f"release={releases[0]}"]
    status, output = run_playbook("playbooks/rollback.yml", "debian12", *options)
    assert status == 0, output
    assert [words[0] for words in take_hook_records(first)] == ["after"]


@contextmanager
def traffic(host: Host) -> Iterator[None]:
    """Request a page continuously; any response will do."""
    stop = threading.Event()

    def visit() -> None:
        while not stop.wait(0.05):
            Site(address(host)).get("/whoami")

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def deploy_rejected(host: Host, tmp_path: Path, entry: dict[str, Any]) -> str:
    """Deploy an entry that must be rolled back, verify that the same processes serve, and return the output on one line."""
    before = processes(host, "sample"), Site(address(host)).get("/whoami").json["release"]
    with traffic(host):
        status, output = deploy("sample", "debian13", tmp_path, apps(sample=entry))
    assert status != 0, output
    assert (processes(host, "sample"), Site(address(host)).get("/whoami").json["release"]) == before
    assert find_leftovers(host, "sample") == []
    return re.sub(r"\s+", " ", output)


def test_release_with_error_responses_during_soak_is_rolled_back(hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts["debian13"]
    failing = WEB.replace("self.write(self.whoami())\n\n\nclass SleepHandler", "raise HTTPError(503)\n\n\nclass SleepHandler")
    assert failing != WEB
    output = deploy_rejected(host, tmp_path, sample_app_source(tmp_path, web=failing) | {"soak": 60, "soak_errors": 20})
    assert re.search(
        r"tornado_apps.sample: release \w+ was live for \d+ s and was rolled back: "
        r"\d+ % of \d+ responses were 5xx, more than 20 %",
        output,
    )
    history = host.check_output("cat /srv/sample/history.json")
    assert "responses were 5xx" in history


def test_release_whose_processes_exit_during_soak_is_rolled_back(hosts: dict[str, Host], tmp_path: Path) -> None:
    ending = WEB.replace(
        "def make_app(**settings",
        "import os\nimport threading\n\nthreading.Timer(4, lambda: os._exit(1)).start()\n\n\ndef make_app(**settings",
    )
    assert ending != WEB
    output = deploy_rejected(hosts["debian13"], tmp_path, sample_app_source(tmp_path, web=ending) | {"soak": 30})
    assert re.search(
        r"was live for \d+ s and was rolled back: process \d (exited and was restarted|did not answer|does not stay up)", output
    )


def test_healthy_release_stays_live_after_soak(hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts["debian13"]
    with traffic(host):
        status, output = deploy("sample", "debian13", tmp_path, apps(sample={"soak": 3, "soak_errors": 0}))
    assert status == 0, output
    assert re.search(r"soak 3\.\d+ s", output)
    assert find_leftovers(host, "sample") == []
