"""MongoDB: one client per process, and the base class of data access objects."""

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
from sample_app.settings import Settings, settings_error

Document = dict[str, Any]

SELECTION_TIMEOUT = 2000
"""Maximum milliseconds to wait for an available server; during an outage every operation waits that long."""

TIMEOUT = 2500
"""Maximum milliseconds of an operation, including retries."""

REJECTED = (13, 18)
"""MongoDB's error codes Unauthorized and AuthenticationFailed."""


def connect(settings: Settings) -> AsyncDatabase[Document]:
    """Return the database; the driver connects at the first operation, and reconnects automatically.

    A write is acknowledged when a majority of the servers has it on disk, so that no outage loses it. Raises SettingsError.
    """
    address: dict[str, Any] = {"host": settings.db_uri}
    if not settings.db_uri:
        address = {"host": settings.db_host, "port": settings.db_port}
        if settings.db_user:
            address |= {"username": settings.db_user, "password": settings.db_password, "authSource": settings.db_name}
    with settings_error("db_uri" if settings.db_uri else "db_host", PyMongoError, ValueError):
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            **address,
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
def outages_as_503() -> Iterator[None]:
    """Convert the errors of an outage to `UnavailableError`; other errors are bugs of this app."""
    try:
        yield
    except PyMongoError as error:
        # After the first rejection, until its next check of the server, the driver raises an error with the reason only as text.
        rejected = error.code in REJECTED if isinstance(error, OperationFailure) else "AuthenticationFailed" in str(error)
        if rejected:
            raise UnavailableError("the database rejected the credentials of this app", error) from error
        if isinstance(error, ConnectionFailure) or error.timeout:
            raise UnavailableError("the database is unavailable", error) from error
        raise


async def ping(database: AsyncDatabase[Document]) -> None:
    """Verify that the database responds and accepts the credentials; raises UnavailableError."""
    with outages_as_503():
        await database.list_collection_names()


async def close(database: AsyncDatabase[Document]) -> None:
    """Close the client; a task of the driver that misses its cancellation is cancelled again with the event loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await database.client.close()


class Dao:
    """Creates, reads, updates and deletes the documents of one collection. Each method may raise UnavailableError.

    A returned document has the additional key ``id``, a string.
    """

    collection_name: ClassVar[str]

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        """Use the collection of ``database``."""
        self.collection = database[self.collection_name]

    @staticmethod
    def to_public(document: Document) -> Document:
        """Return a stored document with ``id`` instead of ``_id``."""
        return {"id": str(document["_id"])} | {name: value for name, value in document.items() if name != "_id"}

    async def insert(self, document: Mapping[str, Any]) -> str:
        """Insert a document and return its id."""
        with outages_as_503():
            result = await self.collection.insert_one(dict(document))
        return str(result.inserted_id)

    async def get(self, key: str) -> Document | None:
        """Return a document, or None if it does not exist."""
        with outages_as_503():
            found = await self.collection.find_one({"_id": ObjectId(key)})
        return found and self.to_public(found)

    async def list(self, *, limit: int, after: str | None = None) -> list[Document]:
        """Return documents in order of creation, from the first one or after the id ``after``."""
        query = {"_id": {"$gt": ObjectId(after)}} if after else {}
        with outages_as_503():
            return [self.to_public(found) async for found in self.collection.find(query, sort=[("_id", 1)], limit=limit)]

    async def replace(self, key: str, document: Mapping[str, Any]) -> bool:
        """Replace a document; return False if it does not exist."""
        with outages_as_503():
            return (await self.collection.replace_one({"_id": ObjectId(key)}, dict(document))).matched_count == 1

    async def delete(self, key: str) -> bool:
        """Delete a document; return False if it does not exist."""
        with outages_as_503():
            return (await self.collection.delete_one({"_id": ObjectId(key)})).deleted_count == 1
