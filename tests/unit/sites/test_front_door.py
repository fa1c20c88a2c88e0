from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor


@pytest.mark.parametrize(
    ("listen", "address", "port"),
    [
        ("80", "127.0.0.1", 80),
        ("*:8080", "127.0.0.1", 8080),
        ("0.0.0.0:80", "127.0.0.1", 80),
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("[::]:80", "::1", 80),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
    ],
)
def test_the_front_door_of_an_address_is_reached_on_the_host(listen: str, address: str, port: int) -> None:
    door = FrontDoor.of(listen, "shop.test", tls=False)
    assert (door.address, door.port) == (address, port)
    assert FrontDoor.from_json(door.to_json()) == door


@contextmanager
def server(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the port of a server that answers one request, and what it receives."""
    received: list[bytes] = []

    def serve() -> None:
        with listener.accept()[0] as connection:
            while b"\r\n\r\n" not in b"".join(received):
                received.append(connection.recv(1000))
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join()


@pytest.mark.parametrize("proxy_protocol", [False, True])
def test_a_client_asks_for_the_domain(*, proxy_protocol: bool) -> None:
    with server(b"HTTP/1.1 204 Fine\r\nX-Funnel-Health: healthy\r\n\r\n") as (port, received):
        door = FrontDoor("127.0.0.1", port, "shop.test", proxy_protocol=proxy_protocol)
        answer = door.ask("/x", {"host": "in.test", "X-Key": "1"}, 5)
    assert (answer.status_line, answer.headers["X-Funnel-Health"]) == ("204 Fine", "healthy")
    lines = b"".join(received).split(b"\r\n")
    if proxy_protocol:
        assert lines.pop(0) == b"PROXY UNKNOWN"
    assert lines[0] == b"GET /x HTTP/1.1"
    assert b"Host: shop.test" in lines


def test_no_answer_is_an_error() -> None:
    with server(b"") as (port, _received), pytest.raises(OSError, match="no HTTP response"):
        FrontDoor("127.0.0.1", port, "shop.test").ask("/", {}, 2)
