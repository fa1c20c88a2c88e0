from __future__ import annotations

import socketserver
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import (
    ConfigChanges,
    ProcessInfo,
    SupervisorError,
    add_group,
    connect,
    process_infos,
    reload_config,
    remove_groups,
    stop_groups,
)


class Supervisord:
    """A fake supervisord with one running group and a set of configured groups, served on a real socket."""

    def __init__(self) -> None:
        self.groups = {"shop-a"}
        self.files = {"shop-a"}
        self.stopped: list[str] = []
        self.delay = 0.0
        self.ends = True

    def reload_config(self) -> list[list[list[str]]]:
        if "broken" in self.files:
            raise xmlrpc.client.Fault(92, "CANT_REREAD: no command in section 'program:x'")
        return [[sorted(self.files - self.groups), [], sorted(self.groups - self.files)]]

    def add(self, name: Any, /) -> bool:
        if name in self.groups:
            raise xmlrpc.client.Fault(90, f"ALREADY_ADDED: {name}")
        if name not in self.files:
            raise xmlrpc.client.Fault(10, f"BAD_NAME: {name}")
        self.groups.add(name)
        return True

    def stop(self, name: Any, wait: Any, /) -> list[Any]:
        assert not wait
        time.sleep(self.delay)
        self.stopped.append(name)
        return []

    def remove(self, name: Any, /) -> bool:
        if name not in self.stopped:
            raise xmlrpc.client.Fault(91, f"STILL_RUNNING: {name}")
        self.groups.discard(name)
        return True

    def state(self, group: str) -> str:
        ended = "STOPPED" if self.ends else "STOPPING"
        return ended if group in self.stopped else "RUNNING"

    def infos(self) -> list[dict[str, object]]:
        return [
            {"name": "0", "group": group, "statename": self.state(group), "pid": 7, "spawnerr": "", "logfile": "/x"}
            for group in sorted(self.groups)
        ]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer, SimpleXMLRPCDispatcher):
    daemon_threads = True
    logRequests = False  # noqa: N815 (an attribute that SimpleXMLRPCRequestHandler reads)

    def __init__(self, path: Path, supervisord: Supervisord) -> None:
        SimpleXMLRPCDispatcher.__init__(self)
        socketserver.UnixStreamServer.__init__(self, str(path), Handler)
        self.register_function(supervisord.reload_config, "supervisor.reloadConfig")
        self.register_function(supervisord.add, "supervisor.addProcessGroup")
        self.register_function(supervisord.stop, "supervisor.stopProcessGroup")
        self.register_function(supervisord.remove, "supervisor.removeProcessGroup")
        self.register_function(supervisord.infos, "supervisor.getAllProcessInfo")


class Handler(SimpleXMLRPCRequestHandler):
    disable_nagle_algorithm = False  # not available on a unix socket


@pytest.fixture
def supervisord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisord]:
    fake = Supervisord()
    monkeypatch.chdir(tmp_path)  # a socket's path is limited to 107 characters
    with Server(Path("s.sock"), fake) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("supervisord")
def test_only_the_processes_of_the_group_are_returned() -> None:
    server = connect(Path("s.sock"))
    assert process_infos(server, "shop-a") == [ProcessInfo("0", "shop-a", "RUNNING", 7, "")]
    assert process_infos(server, "shop-b") == []


def test_adding_a_group_is_idempotent(supervisord: Supervisord) -> None:
    server = connect(Path("s.sock"))
    supervisord.files.add("shop-b")
    assert reload_config(server) == ConfigChanges(["shop-b"], [], [])
    add_group(server, "shop-b")
    add_group(server, "shop-b")
    assert supervisord.groups == {"shop-a", "shop-b"}
    with pytest.raises(SupervisorError, match=r"refused addProcessGroup\(nope\): BAD_NAME: nope"):
        add_group(server, "nope")


def test_removing_a_group_stops_it_and_is_idempotent(supervisord: Supervisord) -> None:
    server = connect(Path("s.sock"))
    remove_groups(server, ["shop-a"], 5)
    remove_groups(server, ["shop-a"], 5)
    assert (supervisord.groups, supervisord.stopped) == (set(), ["shop-a"])


def test_invalid_files_are_reported_with_supervisords_reason(supervisord: Supervisord) -> None:
    supervisord.files.add("broken")
    with pytest.raises(SupervisorError, match="CANT_REREAD: no command in section 'program:x'"):
        add_group(connect(Path("s.sock")), "broken")


def test_stopping_groups_does_not_wait_for_their_processes(supervisord: Supervisord) -> None:
    supervisord.ends = False
    server = connect(Path("s.sock"))
    assert not stop_groups(server, ["shop-a"])
    assert not stop_groups(server, ["shop-a"])
    assert supervisord.stopped == ["shop-a"], "a stopping process is not asked again"


def test_waiting_for_groups_to_stop_is_bounded(supervisord: Supervisord, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisord.ends = False
    monkeypatch.setattr("ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord._KILL_SECONDS", 0)
    with pytest.raises(SupervisorError, match=r"a process of shop-a does not end after 0 s, although it was killed"):
        remove_groups(connect(Path("s.sock")), ["shop-a"], 0.2)


def test_an_answer_of_supervisord_is_awaited_for_a_limited_time(supervisord: Supervisord) -> None:
    supervisord.delay = 1.0
    with pytest.raises(SupervisorError, match=r"did not answer stopProcessGroup\(shop-a, False\) in time"):
        stop_groups(connect(Path("s.sock"), timeout=0.2), ["shop-a"])


def test_an_unreachable_supervisord_is_reported_with_its_socket(tmp_path: Path) -> None:
    with pytest.raises(SupervisorError, match=r"no\.sock"):
        process_infos(connect(tmp_path / "no.sock"), "shop-a")
