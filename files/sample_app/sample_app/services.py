"""What the app stands on, the database and the lock server, as its handlers and jobs find it."""

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
    """What there is; None is for what there is not. A check returns when its service answers, and raises UnavailableError.

    ``ending`` has what is to be awaited at the end of the process, the last first: a driver's own tasks may miss a cancellation.
    """

    documents: Documents | None = None
    runs: Runs | None = None
    locks: LockManager | None = None
    checks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    ending: AsyncExitStack = field(default_factory=AsyncExitStack)


def connect(config: Settings) -> Services:
    """Return what the settings name. Nothing is asked yet: an app starts without what it stands on, too."""
    services = Services()
    if config.has_database:
        # Imported only here, because it takes as long as all the rest of the app's start.
        from sample_app import daos, database

        db = database.connect(config)
        services.documents, services.runs = daos.Documents(db), daos.Runs(db)
        services.checks["database"] = partial(database.ping, db)
        services.ending.push_async_callback(database.close, db)
    if config.endpoints:
        etcd = Etcd(
            config.endpoints, user=config.lock_server_user, password=config.lock_server_password, ca=config.lock_server_ca
        )
        services.locks = LockManager(etcd, prefix=str(identity()["app"] or "sample"), ttl=config.lock_ttl)
        services.checks["locks"] = services.locks.ping
    return services
