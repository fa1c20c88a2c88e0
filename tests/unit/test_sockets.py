from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sockets import connections, listener_pid


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / ".0.sock.new"))
        server.listen()
        (tmp_path / ".0.sock.new").rename(tmp_path / "0.sock")
        yield server


def test_a_renamed_sockets_connections_are_counted_until_they_are_closed(tmp_path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "0.sock"))
        accepted, _ = listener.accept()
        assert connections(tmp_path, set()) == 1
        accepted.close()
    assert connections(tmp_path, set()) == 0


def test_another_directorys_connections_are_not_counted(tmp_path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "0.sock"))
        accepted, _ = listener.accept()
        with accepted:
            assert connections(tmp_path.with_name(tmp_path.name + "-other"), set()) == 0


def test_connections_to_a_port_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connections(Path("/nowhere"), {port}) == 0
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            with accepted:
                assert connections(Path("/nowhere"), {port}) == 1


def test_the_listener_is_known_to_be_a_descendant_of_the_supervised_process(tmp_path: Path, listener: socket.socket) -> None:
    assert listener.fileno() >= 0
    assert listener_pid(tmp_path / "0.sock", os.getpid()) == os.getpid()
    assert listener_pid(tmp_path / "0.sock", os.getppid()) == os.getpid()


def test_a_strangers_listener_is_not_taken_for_the_supervised_process(tmp_path: Path, listener: socket.socket) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert listener.fileno() >= 0
    assert listener_pid(tmp_path / "0.sock", child) is None
