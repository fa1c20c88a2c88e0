"""Distributed locks in a real etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sample_app.errors import UnavailableError
from sample_app.etcd import Etcd, encode
from sample_app.locks import AcquiredLock, Lock, LockHeldError, LockLostError, LockManager

from tests.support import servers
from tests.support.flaky import FlakyServer
from tests.support.pki import Authority
from tests.support.remote import eventually

TTL = 2  # the minimum of etcd


@pytest.fixture
def manager(etcd: servers.Server, request: pytest.FixtureRequest) -> Callable[..., LockManager]:
    """Return a function that creates the lock manager of a process."""

    def manager(ttl: int = TTL) -> LockManager:
        return LockManager(Etcd([f"http://127.0.0.1:{etcd.port}"]), prefix=request.node.name, ttl=ttl)

    return manager


def test_lock_has_one_holder_and_increasing_tokens(manager: Callable[[], LockManager]) -> None:
    holders: list[int] = []
    tokens: list[int] = []

    async def hold() -> None:
        async with manager().lock("a") as lock:
            assert lock.held
            tokens.append(lock.token)
            holders.append(1)
            assert len(holders) == 1
            await asyncio.sleep(0.05)
            holders.pop()

    async def run() -> None:
        await asyncio.gather(*(hold() for _ in range(5)))

    asyncio.run(run())
    assert len(tokens) == 5
    assert tokens == sorted(set(tokens))


def test_held_lock_without_blocking_raises_or_is_not_held(manager: Callable[[], LockManager]) -> None:
    async def run() -> None:
        other = manager()
        async with manager().lock("a"), other.lock("b"):
            with pytest.raises(LockHeldError):
                async with other.lock("a", blocking=False):
                    pytest.fail("held twice")
            async with other.lock("a", blocking=False, silent=True) as lock:
                assert not lock.held
        async with other.lock("a", blocking=False) as lock:
            assert lock.held

    asyncio.run(run())


def test_lock_is_released_after_an_error_or_cancellation(manager: Callable[[], LockManager]) -> None:
    async def run() -> None:
        locks = manager()
        with pytest.raises(TimeoutError, match="own"):
            async with locks.lock("a"):
                raise TimeoutError("own")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), locks.lock("a", blocking=False):
                await asyncio.sleep(5)
        async with locks.lock("a", blocking=False):
            pass

    asyncio.run(run())


def test_lease_is_renewed_while_the_lock_is_held(manager: Callable[[], LockManager]) -> None:
    async def run() -> None:
        async with manager().lock("a"):
            for _ in range(int(TTL * 2.5 / 0.1)):
                await asyncio.sleep(0.1)
                with pytest.raises(LockHeldError):
                    async with manager().lock("a", blocking=False):
                        pass

    asyncio.run(run())


def test_disconnected_holder_stops_before_its_lease_expires(manager: Callable[[int], LockManager], etcd: servers.Server) -> None:
    ttl = 5
    began = time.monotonic()

    async def work() -> None:
        nonlocal began
        async with manager(ttl).lock("a"):
            etcd.pause()
            began = time.monotonic()
            try:
                await asyncio.sleep(10)
            finally:
                cancelled.append(time.monotonic() - began)

    cancelled: list[float] = []
    with pytest.raises(LockLostError):
        asyncio.run(work())
    assert 0.5 < cancelled[0] < ttl


class ExpiringLocks(LockManager):
    """Locks whose leases expire immediately."""

    async def try_acquire(self, name: str) -> AcquiredLock | None:
        acquired = await super().try_acquire(name)
        if acquired:
            await self.release(acquired.lease)
        return acquired


def test_lock_with_an_expired_lease_is_lost(etcd: servers.Server) -> None:
    async def work() -> None:
        locks = ExpiringLocks(Etcd([f"http://127.0.0.1:{etcd.port}"]), prefix="ending", ttl=TTL)
        async with locks.lock("a") as lock:
            assert lock.held
            with pytest.raises(LockLostError):
                await locks.record_done(lock, 1)
            await asyncio.sleep(TTL)
            pytest.fail("nothing was cancelled")

    with pytest.raises(LockLostError):
        asyncio.run(work())


def test_once_runs_once_per_occasion(manager: Callable[[], LockManager]) -> None:
    done: list[int] = []

    def work(occasion: int) -> Callable[[Lock], Awaitable[None]]:
        async def work(_lock: Lock) -> None:
            await asyncio.sleep(0.1)
            done.append(occasion)

        return work

    async def process() -> list[int]:
        locks = manager()
        return [occasion for occasion in (1, 2, 5) if await locks.once("job", occasion, work(occasion))]

    async def run() -> list[int]:
        mine = await asyncio.gather(*(process() for _ in range(6)))
        assert not await manager().once("job", 4, work(4)), "a later occasion is done"
        return [occasion for occasions in mine for occasion in occasions]

    assert sorted(asyncio.run(run())) == done == [1, 2, 5]


def test_once_is_retried_by_another_process_after_a_failure(manager: Callable[[], LockManager]) -> None:
    async def fail(_lock: Lock) -> None:
        raise ValueError("its own")

    async def succeed(_lock: Lock) -> None:
        pass

    async def run() -> None:
        with pytest.raises(ValueError, match="its own"):
            await manager().once("job", 1, fail)
        assert await manager().once("job", 1, succeed)

    asyncio.run(run())


def test_run_once_runs_once_per_interval_in_the_fleet(
    manager: Callable[[], LockManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    async def process(number: int) -> bool:
        @manager().run_once("report", every=60)
        async def report(name: str, *, number: int) -> None:
            await asyncio.sleep(0.3)
            done.append(f"{name} {number}")

        if number == 0:
            await asyncio.sleep(1)  # the others have finished by then
        return await report("done by", number=number)

    async def run() -> list[bool]:
        return await asyncio.gather(*(process(number) for number in range(5)))

    for count, now in enumerate((600.0, 659.9, 660.0), 1):
        monkeypatch.setattr("sample_app.locks.time.time", lambda now=now: now)
        mine = asyncio.run(run())
        assert sum(mine) == (count != 2)
        assert len(done) == (1, 1, 2)[count - 1]
        assert not sum(mine) or done[-1] == f"done by {mine.index(True)}"


@pytest.mark.parametrize("status", [404, 429, 202])
def test_invalid_response_of_etcd_returns_503(start: Any, flaky_server: FlakyServer, status: int) -> None:
    flaky_server.statuses["/v3/kv/range"] = [status]
    app = start(ETCD_ENDPOINTS=f"http://127.0.0.1:{flaky_server.server_port}")
    response = app.fetch("/readyz")
    assert (response.status, response.json["locks"]) == (503, "the response of the lock server is invalid")


def test_invalid_response_of_etcd_does_not_lose_the_lock(etcd: servers.Server, flaky_server: FlakyServer) -> None:
    flaky_server.statuses["/v3/lease/keepalive"] = [404, 202]

    class Keeping(Etcd):
        async def keep_alive(self, lease: str) -> float:
            if flaky_server.statuses["/v3/lease/keepalive"]:
                return await Etcd([f"http://127.0.0.1:{flaky_server.server_port}"]).keep_alive(lease)
            return await super().keep_alive(lease)

    async def run() -> None:
        async with LockManager(Keeping([f"http://127.0.0.1:{etcd.port}"]), prefix="keeping", ttl=5).lock("a"):
            await asyncio.sleep(6)

    asyncio.run(run())
    assert len(flaky_server.request_times["/v3/lease/keepalive"]) == 2


def test_next_endpoint_is_used_if_one_is_unavailable(etcd: servers.Server) -> None:
    async def run() -> list[str]:
        dead = f"http://127.0.0.1:{servers.free_port()}"
        client = Etcd([dead, f"http://127.0.0.1:{etcd.port}"])
        assert await client.get("none") is None
        return client.endpoints

    assert asyncio.run(run())[0].endswith(str(etcd.port))


def test_stopped_etcd_is_unavailable(etcd: servers.Server) -> None:
    etcd.stop()

    async def run() -> None:
        with pytest.raises(UnavailableError, match="the lock server is unavailable"):
            await Etcd([f"http://127.0.0.1:{etcd.port}"]).get("a")

    asyncio.run(run())


def test_etcd_with_authentication() -> None:
    with servers.etcd() as server:
        url = f"http://127.0.0.1:{server.port}"

        async def run() -> None:
            plain = Etcd([url])
            for method, body in (
                ("auth/user/add", {"name": "root", "password": "r"}),
                ("auth/role/add", {"name": "root"}),
                ("auth/user/grant", {"user": "root", "role": "root"}),
                ("auth/user/add", {"name": "app", "password": "a"}),
                ("auth/role/add", {"name": "app"}),
                ("auth/role/grant", {"name": "app", "perm": {"permType": 2, "key": encode("x/"), "range_end": encode("x0")}}),
                ("auth/user/grant", {"user": "app", "role": "app"}),
                ("auth/enable", {}),
            ):
                await plain.call(method, **body)
            with pytest.raises(UnavailableError, match="rejected the credentials"):
                await plain.get("a")
            with pytest.raises(UnavailableError, match="rejected the credentials"):
                await Etcd([url], user="root", password="wrong").get("a")

            app = Etcd([url], user="app", password="a")
            with pytest.raises(UnavailableError, match="rejected the credentials"):
                await app.get("y/a")
            locks = LockManager(app, prefix="x", ttl=TTL)
            await locks.ping()

            async def work(_lock: Lock) -> None:
                await asyncio.sleep(TTL * 1.5)

            assert await locks.once("job", 1, work)
            async with locks.lock("job", blocking=False):
                pass
            server.stop()
            server.start()  # etcd's simple tokens are in its memory
            assert not await locks.once("job", 1, work)

        asyncio.run(run())


def test_etcd_with_tls(tmp_path: Path) -> None:
    authority = Authority("test", datetime.now(UTC))
    (tmp_path / "authority.pem").write_text(authority.pem)
    files = authority.leaf("localhost").write(tmp_path)
    other = tmp_path / "other.pem"
    other.write_text(Authority("other", datetime.now(UTC)).pem)

    async def run(url: str) -> None:
        assert await Etcd([url], ca=str(tmp_path / "authority.pem")).get("a") is None
        for ca in (str(other), ""):
            with pytest.raises(UnavailableError, match=r"is unavailable.*certificate"):
                await Etcd([url], ca=ca).get("a")

    with servers.etcd(files["certificate"], files["key"]) as server:
        asyncio.run(run(f"https://localhost:{server.port}"))


def test_app_serves_and_is_not_ready_without_the_lock_server(start: Any, locks: dict[str, str], etcd: servers.Server) -> None:
    app = start(**locks)
    assert app.fetch("/readyz").json == {"status": "ok", "env": "development", "locks": "ok"}
    etcd.pause()
    response = app.fetch("/readyz")
    assert (response.status, response.json["locks"]) == (503, "the lock server is unavailable")
    assert app.fetch("/whoami").status == 200
    etcd.resume()
    assert eventually(lambda: app.fetch("/readyz").status == 200)
