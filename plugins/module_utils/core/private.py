"""Owners, modes and access control lists of files and directories that only some users may access."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

#: The extended attribute of a file's access control list, acl(5).
ACL = "system.posix_acl_access"

#: Format version, entry tags, and the id of entries without a qualifier, from the kernel's posix_acl_xattr.h.
ACL_VERSION = 2
OWNER, USER, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
NO_ID = 0xFFFFFFFF

#: Kernel settings that prevent an app from redirecting nginx to the socket of another app, proc_sys_fs(5).
LINK_PROTECTION = ("protected_symlinks", "protected_hardlinks")


class PrivateError(Exception):
    """Access to a directory cannot be restricted. The message contains the reason and the remedy."""


def restrict_directory(path: Path, gid: int, mode: int, user: int | None = None) -> None:
    """Set the owner root, the group and the mode of a directory; ``user`` gets the permissions of the group by an ACL.

    :raises PrivateError: if ``user`` is set and the file system does not support ACLs.
    """
    with _opened(path) as descriptor:
        os.fchown(descriptor, 0, gid)
        if user is None:
            os.fchmod(descriptor, mode)
            return
        try:
            os.setxattr(descriptor, ACL, acl(mode, user))  # sets the mode as well
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise PrivateError(
                f"the file system of {path} does not support POSIX access control lists, which restrict access to it: "
                "mount it with ACLs enabled, or use a file system that supports them, such as ext4, XFS or Btrfs"
            ) from error


def set_owner(path: Path, uid: int, gid: int, mode: int) -> None:
    """Set the owner, then the group and the mode of a file or a directory.

    :raises OSError: if it is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def is_restricted(path: Path, gid: int, mode: int, user: int | None = None) -> bool:
    """Return whether a directory is as :func:`restrict_directory` leaves it."""
    with contextlib.suppress(OSError), _opened(path) as descriptor:
        status = os.fstat(descriptor)
        same = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, gid, mode)
        return same and (user is None or os.getxattr(descriptor, ACL) == acl(mode, user))
    return False


def write(path: Path, text: str) -> None:
    """Replace a file by one with mode 0600; its previous content stays if the disk is full. One process at a time may do so."""
    new = staged(path)
    new.unlink(missing_ok=True)  # left behind by an interrupted run
    try:
        with os.fdopen(open_file(new), "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def staged(path: Path) -> Path:
    """Return the file that `write` writes first; an interrupted run leaves it behind."""
    return path.with_name(f".{path.name}.new")


def open_file(path: Path) -> int:
    """Open a file for reading and writing, creating it with mode 0600; do not follow a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def acl(mode: int, user: int, permissions: int | None = None) -> bytes:
    """Return an access control list that adds a user to ``mode``, by default with the permissions of the group."""
    owner, group, others = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    own = group if permissions is None else permissions
    entries = [(OWNER, owner, NO_ID), (USER, own, user), (GROUP, group, NO_ID), (MASK, group, NO_ID), (OTHERS, others, NO_ID)]
    return struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def root_problem() -> str:
    """Return why this process cannot change the host; empty for root."""
    if os.geteuid() == 0:
        return ""
    user = pwd.getpwuid(os.geteuid()).pw_name
    return f"this must run as root, but the tasks run as {user}: set ansible_become: true for the host, or connect as root"


def link_protection_problem(settings: Path = Path("/proc/sys/fs")) -> str:
    """Return why the kernel follows links between the sockets of apps, and the remedy; empty if link protection is on."""
    disabled = [name for name in LINK_PROTECTION if (settings / name).read_text(encoding="utf-8").strip() == "0"]
    if not disabled:
        return ""
    assignments = " ".join(f"fs.{name}=1" for name in disabled)
    return (
        f"the kernel of this host follows links that one app creates to the sockets of another: set {assignments} with sysctl -w "
        "and in /etc/sysctl.d or, if this is a container, on its host"
    )
