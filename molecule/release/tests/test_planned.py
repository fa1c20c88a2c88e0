"""Everyday changes, made on both hosts at once while clients keep them busy: no client notices any of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients, Load
from tests.support.remote import (
    ALL,
    PORTED,
    ROOT,
    Site,
    address,
    apps,
    deploy,
    done,
    eventually,
    extra,
    left_behind,
    processes,
    python,
    run_playbook,
    run_site,
    sample_code,
    start_playbook,
)

#: Long-polls take 5 s: what the drain leaves of them is the app's to finish, which takes as long once more.
SAMPLE: dict[str, Any] = {"drain": 3, "processes": 2}


def variables(sample: dict[str, Any] | None = None, ported: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the variables of this module's deploys, with changes."""
    return apps(sample=SAMPLE | (sample or {}), ported=PORTED | (ported or {}))


@pytest.fixture(scope="module", autouse=True)
def own_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Begin with the entries of this module, and end with those of the scenario."""
    directory = tmp_path_factory.mktemp("own")
    done(run_site(ALL, directory, variables()))
    yield
    done(run_playbook("playbooks/remove.yml", ALL, "-e", "app=ported"))
    done(run_site(ALL, directory, {}))


@pytest.fixture(autouse=True)
def nothing_left(hosts: dict[str, Host]) -> Iterator[None]:
    """Whatever a test does, nothing of it is left but what is served."""
    yield
    assert {(name, app): left_behind(host, app) for name, host in hosts.items() for app in ("sample", "ported")} == {
        (name, app): [] for name in hosts for app in ("sample", "ported")
    }


def served(hosts: dict[str, Host], app: str = "sample") -> dict[str, dict[str, Any]]:
    """Return, of each host, which release in which slot serves an app, from which processes."""
    found = {}
    for name, host in hosts.items():
        pids = set(processes(host, app).values())
        seen = [Site(address(host), "ported.test" if app == "ported" else "").get("/whoami").json for _ in range(20)]
        assert {one["pid"] for one in seen} <= pids
        releases = {(one["release"], one["slot"]) for one in seen}
        assert len(releases) == 1, releases
        release, slot = releases.pop()
        found[name] = {"release": release, "slot": slot, "pids": pids}
    return found


def moved(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], *, release: bool = True) -> bool:
    """Say whether every host serves from new processes in the other slot, and another release, or the same one."""
    return all(
        (then["slot"] != now["slot"], then["release"] != now["release"], then["pids"] & now["pids"]) == (True, release, set())
        for then, now in ((before[name], after[name]) for name in before)
    )


def websockets_moved(loads: dict[str, Load]) -> bool:
    """Say whether all websockets were told to connect again."""
    return all(load.result.closes.get("1012", 0) >= load.shape.websockets for load in loads.values())


def test_new_code(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = served(hosts)
    code = (ROOT / "files/sample_app/sample_app/web.py").read_text().replace('"status": "ok"', '"status": "new"')
    changed = variables(sample_code(tmp_path, web=code))
    with clients("new code") as loads:
        output = done(deploy("sample", ALL, tmp_path, changed, "-vvv", "--diff"))
    after = served(hosts)
    assert moved(before, after)
    assert websockets_moved(loads)
    assert all(Site(address(host)).get("/healthz").json["status"] == "new" for host in hosts.values())
    assert "not-for-others" not in output

    with clients("the same again") as loads:
        output = done(deploy("sample", ALL, tmp_path, changed))
    assert served(hosts) == after
    assert len(re.findall(r"changed=0 ", output)) == len(hosts)
    assert all(int(count) <= 10 for count in re.findall(r" : ok=(\d+) ", output)), "tasks, those on the controller too"
    assert all(load.result.closes == {} for load in loads.values())


def test_another_environment_and_back(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    done(deploy("sample", ALL, tmp_path, variables()))
    before = served(hosts)
    with clients("another environment") as loads:
        done(deploy("sample", ALL, tmp_path, variables({"env": {"SAMPLE_THEME": "dark"}})))
    assert moved(before, served(hosts))
    assert websockets_moved(loads)
    assert all(b'data-theme="dark"' in Site(address(host)).get("/").body for host in hosts.values())

    with clients("rollback") as loads:
        done(run_playbook("playbooks/rollback.yml", ALL, "-e", "app=sample"))
    after = served(hosts)
    assert [one["release"] for one in after.values()] == [one["release"] for one in before.values()]
    assert websockets_moved(loads)


def test_restart(hosts: dict[str, Host], clients: Clients) -> None:
    before = served(hosts)
    with clients("restart") as loads:
        done(run_playbook("playbooks/restart.yml", ALL, "-e", "app=sample"))
    assert moved(before, served(hosts), release=False)
    assert websockets_moved(loads)


def test_more_processes_and_fewer(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    for count in (4, 2):
        with clients(f"{count} processes", reload=True):
            done(deploy("sample", ALL, tmp_path, variables({"processes": count})))
        assert [len(one["pids"]) for one in served(hosts).values()] == [count, count]


def test_more_open_files(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    raised = variables({"open_files": 18_000}) | {"limits_open_files": 18_000}
    with clients("more open files", reload=True):
        done(run_site(ALL, tmp_path, raised))
    for host in hosts.values():
        pids = list(processes(host, "sample").values())
        limits = python(
            host, f"print([int(open(f'/proc/{{pid}}/limits').read().partition('open files')[2].split()[0]) for pid in {pids}])"
        )
        assert limits == [18_000, 18_000]


def test_two_deploys_at_once(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    # As long as it takes here to be refused, and a minute at most.
    wait = "sh -c 'for _ in $(seq 600); do [ ! -e ~/go ] || exit 0; sleep 0.1; done; exit 1'"
    slow = {"env": {"SAMPLE_THEME": "light"}, "hooks": {"before_switch": wait}}
    before = served(hosts)
    with clients("two deploys at once"):
        first = start_playbook("playbooks/deploy.yml", ALL, "-e", "app=sample", *extra(tmp_path, variables(slow)))
        for host in hosts.values():
            eventually(lambda host=host: "before_switch" in host.check_output("cat /srv/sample/.lock"), 60)  # type: ignore[misc]
        status, refused = deploy("sample", ALL, tmp_path, variables(), "-e", "app_wait=0")
        again = start_playbook("playbooks/restart.yml", ALL, "-e", "app=sample", *extra(tmp_path, variables()))
        time.sleep(4)  # it waits for its turn
        for host in hosts.values():
            host.check_output("touch /srv/sample/shared/go")
        second = deploy("sample", ALL, tmp_path, variables({"env": {"SAMPLE_THEME": "dark"}}))
        output, _ = first.communicate(timeout=60)
        again.communicate(timeout=60)
    assert first.returncode == 0, output
    assert status != 0
    message = r"sample: another deploy is running on this host, started by \S+@\S+ at (\S+), current step: before_switch of"
    holder = re.search(message, refused)
    assert holder, refused
    assert datetime.now(UTC) - datetime.fromisoformat(holder[1]) < timedelta(minutes=3)
    assert again.returncode == 0
    done(second)
    for host in hosts.values():
        host.check_output("rm /srv/sample/shared/go")
    assert all(b'data-theme="dark"' in Site(address(host)).get("/").body for host in hosts.values())
    for name, host in hosts.items():
        history = [entry["release"] for entry in json.loads(host.check_output("cat /srv/sample/history.json"))]
        assert history[-3] == before[name]["release"]
        assert before[name]["release"] not in history[-2:], "the restart is of what was live when its turn came"


def test_a_program_on_ports(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    def ported(title: str, **keys: Any) -> dict[str, dict[str, Any]]:
        with clients(f"on ports: {title}", host="ported.test", reload=True, websockets_break=True):
            done(deploy("ported", ALL, tmp_path, variables(ported=keys)))
        return served(hosts, "ported")

    before = served(hosts, "ported")
    dark = ported("another environment", env={"SAMPLE_THEME": "dark"})
    assert moved(before, dark)
    assert all(len(one["pids"]) == 4 for one in ported("4 processes", processes=4).values())
    assert all(len(one["pids"]) == 2 for one in ported("2 processes").values())
    with clients("on ports: restart", host="ported.test", reload=True, websockets_break=True):
        done(run_playbook("playbooks/restart.yml", ALL, "-e", "app=ported"))
