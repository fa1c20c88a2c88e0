"""MongoDB: one client per process, and what all data access objects have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from sample_app.errors import UnavailableError
from sample_app.settings import Settings, blamed

Document = dict[str, Any]

SELECTION_TIMEOUT = 2000
"""Milliseconds that an operation waits for a server that can take it; during an outage all of them wait so long."""

TIMEOUT = 2500
"""Milliseconds that an operation takes at most, waiting and retries included."""

REFUSED = (13, 18)
"""MongoDB's codes for Unauthorized and AuthenticationFailed."""


def connect(settings: Settings) -> AsyncDatabase[Document]:
    """Return the database; nothing is sent before the first operation, and the driver connects again by itself.

    A write is acknowledged when a majority of the servers has it on disk: then no outage loses it. Raises SettingsError.
    """
    place: dict[str, Any] = {"host": settings.db_uri}
    if not settings.db_uri:
        place = {"host": settings.db_host, "port": settings.db_port}
        if settings.db_user:
            place |= {"username": settings.db_user, "password": settings.db_password, "authSource": settings.db_name}
    with blamed("db_uri" if settings.db_uri else "db_host", PyMongoError, ValueError):
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            **place,
            appname="sample_app",
            tz_aware=True,
            w="majority",
            journal=True,
            serverSelectionTimeoutMS=SELECTION_TIMEOUT,
            connectTimeoutMS=SELECTION_TIMEOUT,
            timeoutMS=TIMEOUT,
        )
        return client.get_default_database(settings.db_name)


@contextlib.contextmanager
def available() -> Iterator[None]:
    """Turn an outage into `UnavailableError`; what else goes wrong is a mistake of this app's."""
    try:
        yield
    except PyMongoError as error:
        # After the first refusal the driver answers for the server until it looks again, and then has the reason as text only.
        refused = error.code in REFUSED if isinstance(error, OperationFailure) else "AuthenticationFailed" in str(error)
        if refused:
            raise UnavailableError("the database refuses the user of this app", error) from error
        if isinstance(error, ConnectionFailure) or error.timeout:
            raise UnavailableError("the database does not answer", error) from error
        raise


async def ping(database: AsyncDatabase[Document]) -> None:
    """Return when the database answers, and lets this app in; raises UnavailableError."""
    with available():
        await database.list_collection_names()


async def close(database: AsyncDatabase[Document]) -> None:
    """End the driver's tasks; one that has missed it, and waits for the server, is told again when the event loop ends."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await database.client.close()


class Dao:
    """Creates, reads, updates and deletes the documents of one collection. Each method may raise UnavailableError.

    Documents come out as they went in, and with their ``id``, a string.
    """

    collection_name: ClassVar[str]

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        """Take the database that the collection is in."""
        self.collection = database[self.collection_name]

    @staticmethod
    def shown(document: Document) -> Document:
        """Return a document of the database as others see it."""
        return {"id": str(document["_id"])} | {name: value for name, value in document.items() if name != "_id"}

    async def insert(self, document: Mapping[str, Any]) -> str:
        """Add a document and return its id."""
        with available():
            result = await self.collection.insert_one(dict(document))
        return str(result.inserted_id)

    async def get(self, key: str) -> Document | None:
        """Return a document, None if there is none."""
        with available():
            found = await self.collection.find_one({"_id": ObjectId(key)})
        return found and self.shown(found)

    async def list(self, *, limit: int, after: str | None = None) -> list[Document]:
        """Return documents in the order of their creation: the first, or those after the one of that id."""
        query = {"_id": {"$gt": ObjectId(after)}} if after else {}
        with available():
            return [self.shown(found) async for found in self.collection.find(query, sort=[("_id", 1)], limit=limit)]

    async def replace(self, key: str, document: Mapping[str, Any]) -> bool:
        """Put another document in the place of one; False if there is none."""
        with available():
            return (await self.collection.replace_one({"_id": ObjectId(key)}, dict(document))).matched_count == 1

    async def delete(self, key: str) -> bool:
        """Remove a document; False if there is none."""
        with available():
            return (await self.collection.delete_one({"_id": ObjectId(key)})).deleted_count == 1
