from __future__ import annotations

import configparser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import MAX_LOG_BYTES, ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError, connect

MANIFEST = ReleaseManifest(app="shop", id="1f2e", revision="r1", processes=2, drain=30, runner=True)


def process_group(base: Path, **keys: Any) -> ProcessGroup:
    layout = Layout("shop", base=base)
    layout.release("1f2e").mkdir(parents=True)
    layout.manifest("1f2e").write_text(replace(MANIFEST, **keys).to_json())
    return ProcessGroup(layout, "b", "1f2e", connect(base / "missing.sock"))


def programs(group: ProcessGroup) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    parser.read_string(group._supervisor_config(group.workers))
    return {name: dict(parser[name]) for name in parser.sections()}


def test_the_processes_of_a_slot_form_one_supervisord_group(tmp_path: Path) -> None:
    [(name, program)] = programs(process_group(tmp_path)).items()
    assert (name, program["numprocs"], program["user"]) == ("program:shop-b", "2", "shop")
    assert program["command"] == f"{tmp_path}/srv/shop/releases/1f2e/launch.py b %(process_num)d"
    assert program["stdout_logfile"] == f"{tmp_path}/var/log/shop/b-%(process_num)d.log"


def test_supervisord_waits_longer_than_a_process_drains(tmp_path: Path) -> None:
    assert int(programs(process_group(tmp_path))["program:shop-b"]["stopwaitsecs"]) > MANIFEST.drain


def test_a_slot_records_the_release_that_it_replaces_and_a_restart_keeps_it(tmp_path: Path) -> None:
    group = process_group(tmp_path)
    assert group._previous_release() is None
    group.layout.slot("a").mkdir(parents=True)
    group.layout.live.symlink_to("slots/a")
    release = group.layout.slot("a") / "release"
    release.symlink_to("../../releases/0a1b")
    assert group._previous_release() == "0a1b"
    release.unlink()
    release.symlink_to("../../releases/1f2e")
    assert group._previous_release() is None
    (group.layout.slot("a") / "before").symlink_to("../../releases/0a1b")
    assert group._previous_release() == "0a1b"


def test_workers_have_groups_whose_names_no_app_can_have(tmp_path: Path) -> None:
    found = programs(process_group(tmp_path, workers={"worker": Worker(["w"], 3)}))
    assert list(found) == ["program:shop-b", "program:shop-b.worker"]
    worker = found["program:shop-b.worker"]
    assert (worker["numprocs"], worker["command"].split()[1:]) == ("3", ["b", "%(process_num)d", "worker"])
    assert worker["stdout_logfile"].endswith("/b-worker-%(process_num)d.log")


@pytest.mark.parametrize(("runner", "stops_group"), [(True, "false"), (False, "true")])
def test_a_shell_is_stopped_together_with_its_children(tmp_path: Path, *, runner: bool, stops_group: str) -> None:
    assert programs(process_group(tmp_path, runner=runner))["program:shop-b"]["stopasgroup"] == stops_group


def test_a_worker_is_stopped_as_its_entry_says(tmp_path: Path) -> None:
    workers = {"mail": Worker(["m"], 1, 600, "INT", stop_group=False), "old": Worker(["o"], 1), "off": Worker(["x"], 0)}
    found = programs(process_group(tmp_path, workers=workers))
    keys = ("stopsignal", "stopwaitsecs", "stopasgroup", "killasgroup")
    assert [found["program:shop-b.mail"][key] for key in keys] == ["INT", "605", "false", "true"]
    assert [found["program:shop-b.old"][key] for key in keys] == ["TERM", "35", "true", "true"]
    assert "program:shop-b.off" not in found


def test_a_slot_starts_and_reboots_without_singletons_until_they_are_handed_over(tmp_path: Path) -> None:
    group = process_group(tmp_path, workers={"queue": Worker(["q"], 1), "beat": Worker(["b"], 1, singleton=True)})
    file = group.layout.supervisor_file("b")
    file.parent.mkdir(parents=True)
    with pytest.raises(SupervisorError):
        group.start_workers()
    assert ["shop-b.queue]" in file.read_text(), "shop-b.beat]" in file.read_text()] == [True, True]
    with pytest.raises(SupervisorError):
        group.stop_singletons()
    assert ["shop-b.queue]" in file.read_text(), "shop-b.beat]" in file.read_text()] == [True, False]


def test_slots_share_their_socket_paths_in_nginx_but_not_their_ports(tmp_path: Path) -> None:
    assert list(process_group(tmp_path / "sockets")._addresses()) == [
        f"unix:{tmp_path}/sockets/srv/shop/live/run/{process}.sock" for process in (0, 1)
    ]
    assert list(process_group(tmp_path / "ports", port=8000)._addresses()) == ["127.0.0.1:8001", "127.0.0.1:8003"]


@pytest.mark.parametrize(("count", "expected"), [(4, ["2.sock", "3.sock"]), (2, [])])
def test_sockets_that_nginx_still_uses_are_aliases_of_running_processes(tmp_path: Path, count: int, expected: list[str]) -> None:
    group = process_group(tmp_path)
    group.layout.run("b").mkdir(parents=True)
    group.add_socket_aliases(count, "a")
    links = sorted(group.layout.run("b").iterdir())
    assert [link.name for link in links] == expected
    assert {str(link.readlink()) for link in links} <= {"0.sock", "1.sock"}


def test_until_its_reload_nginx_reaches_the_old_slot_if_the_new_one_listens_on_ports(tmp_path: Path) -> None:
    group = process_group(tmp_path, port=8000)
    group.layout.run("b").mkdir(parents=True)
    group.add_socket_aliases(1, "a")
    assert str(group.layout.socket("b", 0).readlink()) == "../../a/run/0.sock"


def test_workers_have_their_own_logs_and_starts_files(tmp_path: Path) -> None:
    layout = Layout("shop", base=tmp_path)
    assert [layout.log("a", 0).name, layout.log("a", 0, "worker").name] == ["a-0.log", "a-worker-0.log"]
    assert [layout.starts("a", 0).name, layout.starts("a", 0, "worker").name] == ["0.starts", "worker.0.starts"]


def test_an_error_shows_the_log_since_the_start_without_repeated_health_checks(tmp_path: Path) -> None:
    group = process_group(tmp_path)
    log = group.layout.log("b", 0)
    log.parent.mkdir(parents=True)
    log.write_text("of the release before\n")
    group._log_starts = {log: group.log_size(0)}
    offsets = []
    for line in ("started", "check 1", "check 2", "check 3"):
        offsets.append(group.log_size(0))
        with log.open("a") as file:
            file.write(f"{line}\n")
    assert group.log_end(log).splitlines()[1:] == ["started", "check 1", "check 2", "check 3"]
    assert group.log_end(log, (offsets[2], offsets[3])).splitlines()[1:] == ["started", "check 1", "check 3"]
    with log.open("a") as file:
        file.write("x" * MAX_LOG_BYTES + "\nlast\n")
    assert group.log_end(log, (offsets[2], offsets[3])).splitlines()[-1] == "last"
