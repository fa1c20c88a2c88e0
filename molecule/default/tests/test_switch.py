"""A changed app goes live under load, and nobody notices but by the new release."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.remote import Site, address, apps, eventually, processes, run_playbook, run_site

HOST = "debian13"
CLIENTS = 8

testinfra_hosts = [f"ansible://{HOST}"]


@pytest.fixture
def site(host: Host) -> Site:
    return Site(address(host))


@contextmanager
def load(site: Site) -> Iterator[list[object]]:
    """Keep connections busy with requests, half of them POST; give the list of what came instead of a right answer."""
    stop, failures, answered = threading.Event(), list[object](), [0] * CLIENTS

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(site.address, timeout=30)
        while not stop.is_set():
            method, path, body = ("POST", "/echo", b"funnel") if number % 2 else ("GET", "/whoami", None)
            try:
                connection.request(method, path, body=body)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)
                connection.close()
                continue
            if answer.status != 200 or (body and content != body):
                failures.append((answer.status, content))
            answered[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert min(answered) > 50


def deploy(tmp_path: Path, variables: dict[str, Any]) -> str:
    status, output = run_site(HOST, tmp_path, variables, "-vvv", "--diff")
    assert status == 0, output[-3000:]
    return output


def test_a_changed_environment_goes_live_and_back_without_a_failed_request(tmp_path: Path, site: Site) -> None:
    before = site.get("/whoami").json
    with load(site) as failures:
        output = deploy(tmp_path, apps(sample={"env": {"SAMPLE_THEME": "dark"}}))
        during = site.get("/whoami").json
        deploy(tmp_path, {})
        after = site.get("/whoami").json
    assert failures == []
    assert (during["release"] != before["release"], during["slot"] != before["slot"]) == (True, True)
    assert (after["release"], after["slot"]) == (before["release"], before["slot"])
    assert "not-for-others" not in output
    assert "nor-this" not in output


def test_a_rollback_serves_the_release_before_and_a_second_one_the_release_after(tmp_path: Path, site: Site) -> None:
    deploy(tmp_path, apps(sample={"env": {"SAMPLE_THEME": "dark"}}))
    newer = site.get("/whoami").json["release"]
    seen = []
    with load(site) as failures:
        for _ in range(2):
            status, output = run_playbook("playbooks/rollback.yml", HOST, "-e", "app=sample")
            assert status == 0, output
            seen.append(site.get("/whoami").json["release"])
    assert failures == []
    assert seen[0] != newer
    assert seen[1] == newer
    deploy(tmp_path, {})
    assert site.get("/whoami").json["release"] == seen[0]


@pytest.mark.parametrize("release", ["000000000000", "previous"])
def test_a_rollback_to_what_was_never_served_is_refused(host: Host, site: Site, release: str) -> None:
    app = "sample" if release != "previous" else "nosuch"
    before = site.get("/whoami").json["pid"]
    status, output = run_playbook("playbooks/rollback.yml", HOST, "-e", f"app={app}", "-e", f"release={release}")
    assert status != 0
    assert "never served on this host" in output or "nothing was served on this host before" in output
    assert before in processes(host, "sample").values()


def test_the_status_is_right_and_its_exit_status_says_whether_all_is_well(host: Host, tmp_path: Path, site: Site) -> None:
    def look(*options: str) -> tuple[int, str]:
        return run_playbook("playbooks/status.yml", HOST, *options)

    running = processes(host, "sample") | processes(host, "plain")
    status, output = look("-e", f"json={tmp_path}/status.json")
    assert status == 0, output
    found = json.loads((tmp_path / "status.json").read_text())[HOST]
    assert {f"{one['app']}-{one['slot']}:{one['process']}": one["pid"] for one in found} == running
    assert {one["open_files_limit"] for one in found} == {16_384, 4_096}
    assert {one["release"] for one in found if one["app"] == "sample"} == {site.get("/whoami").json["release"]}

    name = next(name for name in running if name.startswith("sample"))
    host.run_expect([0], f"supervisorctl stop {name}")
    status, output = look()
    host.run_expect([0], f"supervisorctl start {name}")
    assert status != 0
    assert f"sample: process {name.removeprefix('sample-').replace(':', '/')} is STOPPED, health 0" in output


def test_processes_are_added_and_taken_away_with_at_most_a_reload_of_nginx(host: Host, tmp_path: Path, site: Site) -> None:
    def reached() -> int:
        return len({site.get("/whoami").json["pid"] for _ in range(40)})

    cpus = int(host.check_output("nproc"))
    for count in (cpus + 2, cpus):
        deploy(tmp_path, apps(sample={"processes": count}) if count != cpus else {})
        eventually(lambda count=count: reached() == count)  # type: ignore[misc]  # mypy knows no default in a lambda
        assert len(processes(host, "sample")) == count


def test_a_program_on_ports_goes_live_from_one_slot_to_the_other(host: Host, tmp_path: Path, site: Site) -> None:
    plain = Site(site.address, "plain.test")
    before = set(processes(host, "plain"))
    for environment in ({"SHADE": "dark"}, {}):
        deploy(tmp_path, apps(plain={"env": environment}))
        assert plain.get("/").body == b"plain v1\n"
        now = set(processes(host, "plain"))
        assert now.isdisjoint(before)
        before = now
