"""The data access objects of the examples."""

from __future__ import annotations

import datetime
from typing import Any

from pymongo.errors import DuplicateKeyError

from sample_app.database import Dao, Document, outages_as_503
from sample_app.locks import LockLostError


class Documents(Dao):
    """The documents of ``/documents``, with the methods of `Dao`."""

    collection_name = "documents"


class Runs(Dao):
    """The runs of the example job: one document per tick, with all attempts, including rejected ones.

    A run writes only if no run with a newer fencing token has written: a process that is resumed after another one has
    acquired its lock changes nothing. A finished run does not start again, even if its process exited before it could record
    that in the lock server, which is updated after the database.
    """

    collection_name = "runs"

    async def start(self, job: str, tick: int, token: int, process: dict[str, Any]) -> bool:
        """Record the start of a run; return False if the tick is finished. Raises LockLostError."""
        run = {"token": token, "started": now(), "finished": None} | process
        attempt = {"token": token} | process
        try:
            with outages_as_503():
                await self.collection.update_one(
                    {"_id": f"{job}/{tick}", "token": {"$lt": token}, "finished": None},
                    {"$set": {"job": job, "tick": tick} | run, "$push": {"attempts": attempt}},
                    upsert=True,
                )
        except DuplicateKeyError:
            with outages_as_503():
                existing = await self.collection.find_one_and_update({"_id": f"{job}/{tick}"}, {"$push": {"attempts": attempt}})
            if existing and existing["finished"]:
                return False
            raise LockLostError(job) from None
        return True

    async def finish(self, job: str, tick: int, token: int) -> None:
        """Record the end of a run. Raises LockLostError."""
        with outages_as_503():
            result = await self.collection.update_one(
                {"_id": f"{job}/{tick}", "token": token}, {"$set": {"finished": now()}, "$inc": {"runs": 1}}
            )
        if not result.matched_count:
            raise LockLostError(job)

    async def newest(self, limit: int) -> list[Document]:
        """Return up to ``limit`` runs, newest first."""
        with outages_as_503():
            return [self.to_public(found) async for found in self.collection.find(sort=[("tick", -1)], limit=limit)]

    async def prune(self, before: int) -> int:
        """Delete the runs of ticks before a Unix time, and return their number."""
        with outages_as_503():
            return (await self.collection.delete_many({"tick": {"$lt": before}})).deleted_count


def now() -> str:
    """Return the current time in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
