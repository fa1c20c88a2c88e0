"""The data access objects of the examples."""

from __future__ import annotations

import datetime
from typing import Any

from pymongo.errors import DuplicateKeyError

from sample_app.database import Dao, Document, available
from sample_app.locks import LockLostError


class Documents(Dao):
    """The documents of ``/documents``: all of it is in `Dao`."""

    collection_name = "documents"


class Runs(Dao):
    """What the example job did: one document for each tick, with all attempts to run it, also those that were refused.

    A run writes only as long as nobody with a newer fencing token has: one that was stopped, and is continued after its lock
    was given to another, changes nothing any more. What a run has finished is not begun again, also if its process was gone
    before it could tell so: the lock server and the database do not learn of it at the same moment.
    """

    collection_name = "runs"

    async def start(self, job: str, tick: int, token: int, who: dict[str, Any]) -> bool:
        """Note that a run has begun; False if this tick has been finished. Raises LockLostError."""
        run = {"token": token, "started": now(), "finished": None} | who
        attempt = {"token": token} | who
        try:
            with available():
                await self.collection.update_one(
                    {"_id": f"{job}/{tick}", "token": {"$lt": token}, "finished": None},
                    {"$set": {"job": job, "tick": tick} | run, "$push": {"attempts": attempt}},
                    upsert=True,
                )
        except DuplicateKeyError:
            with available():
                known = await self.collection.find_one_and_update({"_id": f"{job}/{tick}"}, {"$push": {"attempts": attempt}})
            if known and known["finished"]:
                return False
            raise LockLostError(job) from None
        return True

    async def finish(self, job: str, tick: int, token: int) -> None:
        """Note that a run has ended. Raises LockLostError."""
        with available():
            result = await self.collection.update_one(
                {"_id": f"{job}/{tick}", "token": token}, {"$set": {"finished": now()}, "$inc": {"runs": 1}}
            )
        if not result.matched_count:
            raise LockLostError(job)

    async def newest(self, limit: int) -> list[Document]:
        """Return runs, the newest first."""
        with available():
            return [self.shown(found) async for found in self.collection.find(sort=[("tick", -1)], limit=limit)]

    async def prune(self, before: int) -> int:
        """Remove the runs of ticks before a unix time, and return how many there were."""
        with available():
            return (await self.collection.delete_many({"tick": {"$lt": before}})).deleted_count


def now() -> str:
    """Return the time as text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
