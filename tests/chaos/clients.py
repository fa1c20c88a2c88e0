"""Clients of an app: keep-alive load in a thread, which records what failed, what was stored, and which releases answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

from tests.support.load import Connection, Generator, Result, Shape, UnansweredError

#: Reason of the failure of a POST that was sent on an idle connection while the server closed it (RFC 9112, 9.3.1).
CLOSED = "the server closed a reused connection"


class Once(Connection):
    """A connection that never repeats a POST, so that a note that is stored twice was duplicated by the server."""

    async def exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body; repeat only a GET."""
        if method != "POST":
            return await super().exchange(method, path, body)
        if self.streams and self.streams[0].at_eof():
            self.close()
            self.result.reconnects += 1
        reused = self.streams is not None
        try:
            return await self.send(method, path, body)
        except UnansweredError as error:
            raise UnansweredError(CLOSED if reused else str(error)) from error


class Clients(Generator):
    """Puts load on an app until `stop`."""

    def __init__(self, address: str, domain: str, connections: int) -> None:
        """Start the clients."""
        super().__init__(
            Shape(
                address=address,
                host=domain,
                connections=connections,
                polls=2,
                websockets=2,
                pause=0.5,
                recorded="",
                poll="/sleep?seconds=1",
            )
        )
        #: When each release answered last, by its mark and ID.
        self.answered: dict[tuple[str, str], float] = {}
        self.reported = 0
        self.cut = 0
        self.loop = asyncio.new_event_loop()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.run())
        except BaseException as error:  # reported by the next check
            self.error = error

    def stop(self) -> Result:
        """Stop the load after the responses to all requests in flight."""
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(60)
        return self.result

    def connect(self) -> Connection:
        """Return a connection that never repeats a POST."""
        return Once(self.shape, self.result)

    def receive(self, content: bytes) -> None:
        """Record which release answered."""
        found = json.loads(content)
        self.answered[found["mark"], found["release"]] = time.time()

    def new_failures(self) -> list[tuple[float, float, str]]:
        """Return the failures since the last call: start, duration and reason."""
        failures = self.result.failures[self.reported :]
        self.reported += len(failures)
        return failures

    def new_cuts(self) -> int:
        """Return how many websockets ended without a request to reconnect since the last call."""
        before, self.cut = self.cut, self.result.cut
        return self.cut - before


def compare(acknowledged: list[str], stored: str) -> list[str]:
    """Return which acknowledged notes are not stored, and which notes are stored more than once."""
    counts = Counter(stored.split())
    lost = [note for note in acknowledged if not counts[note]]
    doubled = [note for note, count in counts.items() if count > 1]
    return [
        *([f"{len(lost)} acknowledged POSTs are lost, such as {lost[0]}"] if lost else []),
        *([f"{len(doubled)} POSTs are stored more than once, such as {doubled[0]}"] if doubled else []),
    ]
