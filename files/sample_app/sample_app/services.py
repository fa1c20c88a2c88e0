"""The services that handlers and jobs use: database and lock server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sample_app.etcd import Etcd
from sample_app.locks import LockManager
from sample_app.settings import Settings, identity

if TYPE_CHECKING:
    from sample_app.daos import Documents, Runs


@dataclass
class Services:
    """The configured services; None for others. A check verifies that its service responds, or raises UnavailableError.

    ``cleanup`` has callbacks to await at exit, in reverse order: the tasks of a driver may miss their cancellation.
    """

    documents: Documents | None = None
    runs: Runs | None = None
    locks: LockManager | None = None
    checks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    cleanup: AsyncExitStack = field(default_factory=AsyncExitStack)


def connect(config: Settings) -> Services:
    """Return the configured services, without connecting to them: the app also starts during an outage."""
    services = Services()
    if config.has_database:
        # Imported only if used, because the import takes as long as the rest of the start.
        from sample_app import daos, database

        db = database.connect(config)
        services.documents, services.runs = daos.Documents(db), daos.Runs(db)
        services.checks["database"] = partial(database.ping, db)
        services.cleanup.push_async_callback(database.close, db)
    if config.endpoints:
        etcd = Etcd(
            config.endpoints, user=config.lock_server_user, password=config.lock_server_password, ca=config.lock_server_ca
        )
        services.locks = LockManager(etcd, prefix=str(identity()["app"] or "sample"), ttl=config.lock_ttl)
        services.checks["locks"] = services.locks.ping
    return services
