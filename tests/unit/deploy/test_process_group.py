from __future__ import annotations

import configparser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import connect

MANIFEST = ReleaseManifest(app="shop", id="1f2e", revision="r1", processes=2, drain=30, runner=True)


def generation(base: Path, **keys: Any) -> ProcessGroup:
    layout = Layout("shop", base=base)
    layout.release("1f2e").mkdir(parents=True)
    layout.manifest("1f2e").write_text(replace(MANIFEST, **keys).to_json())
    return ProcessGroup(layout, "b", "1f2e", connect(base / "nobody.sock"))


def programs(one: ProcessGroup) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    parser.read_string(one._group_text())
    return {name: dict(parser[name]) for name in parser.sections()}


def test_the_processes_of_a_slot_are_one_group(tmp_path: Path) -> None:
    [(name, program)] = programs(generation(tmp_path)).items()
    assert (name, program["numprocs"], program["user"]) == ("program:shop-b", "2", "shop")
    assert program["command"] == f"{tmp_path}/srv/shop/releases/1f2e/launch.py b %(process_num)d"
    assert program["stdout_logfile"] == f"{tmp_path}/var/log/shop/b-%(process_num)d.log"


def test_supervisord_waits_longer_for_an_end_than_the_process_may_drain(tmp_path: Path) -> None:
    assert int(programs(generation(tmp_path))["program:shop-b"]["stopwaitsecs"]) > MANIFEST.drain


def test_a_slot_knows_the_release_that_it_replaces_and_new_processes_replace_none(tmp_path: Path) -> None:
    one = generation(tmp_path)
    assert one._before() is None
    one.layout.slot("a").mkdir(parents=True)
    one.layout.live.symlink_to("slots/a")
    release = one.layout.slot("a") / "release"
    release.symlink_to("../../releases/0a1b")
    assert one._before() == "0a1b"
    release.unlink()
    release.symlink_to("../../releases/1f2e")
    assert one._before() is None
    (one.layout.slot("a") / "before").symlink_to("../../releases/0a1b")
    assert one._before() == "0a1b"


def test_workers_are_groups_of_their_own_that_no_app_can_be_named_like(tmp_path: Path) -> None:
    found = programs(generation(tmp_path, workers={"worker": Worker(["w"], 3)}))
    assert list(found) == ["program:shop-b", "program:shop-b.worker"]
    worker = found["program:shop-b.worker"]
    assert (worker["numprocs"], worker["command"].split()[1:]) == ("3", ["b", "%(process_num)d", "worker"])
    assert worker["stdout_logfile"].endswith("/b-worker-%(process_num)d.log")


@pytest.mark.parametrize(("runner", "whole_group"), [(True, "false"), (False, "true")])
def test_a_shell_is_stopped_together_with_what_it_runs(tmp_path: Path, *, runner: bool, whole_group: str) -> None:
    assert programs(generation(tmp_path, runner=runner))["program:shop-b"]["stopasgroup"] == whole_group


def test_both_slots_have_the_same_socket_paths_for_nginx_and_other_ports(tmp_path: Path) -> None:
    assert list(generation(tmp_path / "sockets")._addresses()) == [
        f"unix:{tmp_path}/sockets/srv/shop/live/run/{process}.sock" for process in (0, 1)
    ]
    assert list(generation(tmp_path / "ports", port=8000)._addresses()) == ["127.0.0.1:8001", "127.0.0.1:8003"]


@pytest.mark.parametrize(("known", "expected"), [(4, ["2.sock", "3.sock"]), (2, [])])
def test_sockets_that_nginx_still_knows_lead_to_processes_that_answer(tmp_path: Path, known: int, expected: list[str]) -> None:
    one = generation(tmp_path)
    one.layout.run("b").mkdir(parents=True)
    one.add_socket_aliases(known, "a")
    links = sorted(one.layout.run("b").iterdir())
    assert [link.name for link in links] == expected
    assert {str(link.readlink()) for link in links} <= {"0.sock", "1.sock"}


def test_until_its_reload_nginx_reaches_the_slot_before_one_that_listens_on_ports(tmp_path: Path) -> None:
    one = generation(tmp_path, port=8000)
    one.layout.run("b").mkdir(parents=True)
    one.add_socket_aliases(1, "a")
    assert str(one.layout.socket("b", 0).readlink()) == "../../a/run/0.sock"


def test_logs_and_the_files_of_starts_tell_workers_apart(tmp_path: Path) -> None:
    layout = Layout("shop", base=tmp_path)
    assert [layout.log("a", 0).name, layout.log("a", 0, "worker").name] == ["a-0.log", "a-worker-0.log"]
    assert [layout.starts("a", 0).name, layout.starts("a", 0, "worker").name] == ["0.starts", "worker.0.starts"]
