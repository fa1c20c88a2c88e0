"""Files that belong to one process: the pid file and the name of its Unix socket."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection
from pathlib import Path

from .errors import RunnerError, reason


class OwnedFile:
    """A file that this process created; only this process removes it, and only while the path still refers to it."""

    def __init__(self, path: Path) -> None:
        """Record the identity of a file that was just created."""
        self.path = path.absolute()
        self.owner = os.getpid()
        self.identity = self.current_identity()

    def current_identity(self) -> tuple[int, int] | None:
        """Return the device and inode that the path refers to."""
        try:
            status = self.path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove the file; idempotent."""
        if self.owner == os.getpid() and self.identity is not None and self.current_identity() == self.identity:
            self.path.unlink()


class PidFile(OwnedFile):
    """A file with the process id, locked by ``flock`` while the process runs.

    The lock shows whether the process is alive and ends with it; the id in the file is for people and scripts.
    """

    def __init__(self, path: Path, inherited: int | None = None, replaced: Collection[int] = ()) -> None:
        """Lock the file; raise RunnerError if that fails.

        :arg inherited: descriptor of the file, locked before a hot reload.
        :arg replaced: processes whose locked pid file is replaced by a new file.
        """
        try:
            self.fd = self.lock(path, replaced) if inherited is None else inherited
            os.ftruncate(self.fd, 0)
            with contextlib.suppress(OSError):  # such as a full disk; lock() accepts a file without a number
                os.pwrite(self.fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise RunnerError(f"cannot use the pid file {path}: {reason(error)}") from None
        super().__init__(path)

    def lock(self, path: Path, replaced: Collection[int]) -> int:
        """Open and lock the file, and return its descriptor."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                if holder not in map(str, replaced) and (holder or not replaced):
                    raise RunnerError(f"already running: pid {holder or 'unknown'} holds the lock on {path}") from None
                path.unlink(missing_ok=True)
            # The previous holder of the lock may have removed the file between the two calls.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
            os.close(fd)

    def leave_to_parent(self) -> None:
        """Close the descriptor in a forked child, which would otherwise hold the lock after its parent exits."""
        os.close(self.fd)
