"""Directories and files of root's that are for certain users only."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

#: The extended attribute that is a file's access control list, acl(5).
ACL = "system.posix_acl_access"

#: Version of that attribute's format, tags of its entries, and the id in those that are of no certain user or group, as the
#: kernel's posix_acl_xattr.h has them.
ACL_VERSION = 2
OWNER, USER, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
NO_ID = 0xFFFFFFFF

#: The kernel's settings without which an app could lead nginx to a socket of another app, proc_sys_fs(5).
LINK_PROTECTION = ("protected_symlinks", "protected_hardlinks")


class PrivateError(Exception):
    """A directory cannot be closed to other users. The message says why, and the cure."""


def restrict_directory(path: Path, gid: int, mode: int, user: int | None = None) -> None:
    """Make a directory root's, with a group and a mode; ``user`` gets the rights of the group.

    :raises PrivateError: when its file system has no access control lists, without which there are no rights for ``user``.
    """
    with _opened(path) as descriptor:
        os.fchown(descriptor, 0, gid)
        if user is None:
            os.fchmod(descriptor, mode)
            return
        try:
            os.setxattr(descriptor, ACL, _acl(mode, user))  # sets the mode as well
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise PrivateError(
                f"the file system of {path} has no POSIX access control lists, which keep other users away: mount it with them, "
                "or use one that has them, such as ext4, XFS or Btrfs"
            ) from error


def set_owner(path: Path, uid: int, gid: int, mode: int) -> None:
    """Give a file or a directory its owner, group and mode, in this order; a link is refused.

    :raises OSError: when it is a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def is_restricted(path: Path, gid: int, mode: int, user: int | None = None) -> bool:
    """Say whether a directory is as :func:`restrict_directory` makes it."""
    with contextlib.suppress(OSError), _opened(path) as descriptor:
        found = os.fstat(descriptor)
        same = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, gid, mode)
        return same and (user is None or os.getxattr(descriptor, ACL) == _acl(mode, user))
    return False


def write(path: Path, text: str) -> None:
    """Write a file that nobody but root may read, unless it exists with another mode."""
    with os.fdopen(open_file(path), "w") as file:
        file.truncate()
        file.write(text)


def open_file(path: Path) -> int:
    """Open a file that nobody but root may read, to read and to write."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _acl(mode: int, user: int) -> bytes:
    owner, group, others = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = [(OWNER, owner, NO_ID), (USER, group, user), (GROUP, group, NO_ID), (MASK, group, NO_ID), (OTHERS, others, NO_ID)]
    return struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def link_protection_problem(settings: Path = Path("/proc/sys/fs")) -> str:
    """Return why the kernel would follow links that an app makes among its sockets, and the cure; nothing if it does not."""
    off = [name for name in LINK_PROTECTION if (settings / name).read_text().strip() == "0"]
    if not off:
        return ""
    wanted = " ".join(f"fs.{name}=1" for name in off)
    return (
        f"the kernel of this host follows links that an app makes to the sockets of another app: set {wanted} with sysctl -w "
        "and in /etc/sysctl.d, or, if this is a container, on the machine that it runs on"
    )
