"""Safe access to files and directories that an unprivileged user can write: no operation follows a link of that user.

Each path is resolved from a directory that only root can write, component by component, through file descriptors opened with
O_NOFOLLOW. Size, number, depth and duration are limited, and no operation crosses a mount point.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import FULL, REMEDY
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline

#: O_NONBLOCK: opening a pipe, or a file with a lease, must not block.
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | _SAFE
_FILE = os.O_RDONLY | _SAFE

#: Errors of opening a path of another type: a link, a socket or a device, or a path below a file.
_WRONG_KIND = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.EAGAIN)

_CHUNK = 1 << 20

#: How often :func:`remove` empties a directory to which its owner keeps adding files.
_ATTEMPTS = 100

#: Characters of a removed path's name in the name of its trash directory.
_NAME_LENGTH = 50

#: Symbolic links that are followed in the resolution of a path; the limit of Linux.
_MAX_LINKS = 40


class TreeError(Exception):
    """A path is of an unexpected type, or exceeds a limit. The message contains the path."""


@dataclass(frozen=True)
class Limits:
    """Limits of a copied tree: ``files`` of any type, ``size`` in bytes, ``depth`` of directories, ``seconds`` of copying.

    ``free`` bytes of the file system remain, without those reserved for root: a sparse file of the owner takes all of its size.
    """

    files: int = 500_000
    size: int = 32 << 30
    depth: int = 100
    seconds: float = 900.0
    free: int = 64 << 20


def read(path: Path, limit: int, *, trusted: Path) -> bytes:
    """Return the content of a regular file below ``trusted``, a directory that only root can write.

    :raises FileNotFoundError: if it does not exist.
    :raises TreeError: if it is not a regular file, its path contains a link, or it has more than ``limit`` bytes.
    """
    with _opened(path, trusted) as descriptor:
        data = _read(descriptor, limit + 1)
    if len(data) > limit:
        raise TreeError(f"{path} has more than {limit} bytes")
    return data


def read_end(path: Path, limit: int, *, trusted: Path, start: int = 0) -> bytes:
    """Return up to the last ``limit`` bytes, from offset ``start``, of a regular file below ``trusted``.

    A file shorter than ``start`` has been truncated and is read from its beginning.

    :raises FileNotFoundError: if it does not exist.
    :raises TreeError: if it is not a regular file, or its path contains a link.
    """
    with _opened(path, trusted) as descriptor:
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(size - limit, start if start <= size else 0), os.SEEK_SET)
        return _read(descriptor, limit)


def names(path: Path, limit: int, *, trusted: Path) -> list[str]:
    """Return the sorted names in a directory, which is ``trusted`` or below it.

    :raises FileNotFoundError: if it does not exist.
    :raises TreeError: if it is not a directory, its path contains a link, or it contains more than ``limit`` names.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _enter(stack, path, trusted)
        found = list(itertools.islice(_scan(descriptor), limit + 1))
    if len(found) > limit:
        raise TreeError(f"{path} contains more than {limit} names")
    return sorted(found)


def state(path: Path, *, trusted: Path) -> os.stat_result | None:
    """Return the status of a file of any type below ``trusted``, without following it; None if it does not exist.

    :raises TreeError: if the path to it contains a link.
    """
    with contextlib.ExitStack() as stack:
        try:
            parent = _enter(stack, path.parent, trusted)
        except FileNotFoundError:
            return None
        return _state(path.name, parent)


def move(path: Path, target: Path, *, trusted: Path) -> None:
    """Rename a file of any type below ``trusted`` to a path below it.

    :raises FileNotFoundError: if it does not exist.
    :raises TreeError: if one of the paths contains a link.
    """
    with contextlib.ExitStack() as stack:
        source, destination = _enter(stack, path.parent, trusted), _enter(stack, target.parent, trusted)
        os.rename(path.name, target.name, src_dir_fd=source, dst_dir_fd=destination)


def replace_link(path: Path, target: str, *, trusted: Path) -> None:
    """Create a symbolic link below ``trusted``, replacing a file of any type.

    :raises TreeError: if the owner of the directory keeps creating a directory in its place.
    """
    with contextlib.ExitStack() as stack:
        parent = _enter(stack, path.parent, trusted)
        new = f".{os.urandom(16).hex()}"
        os.symlink(target, new, dir_fd=parent)
        try:
            for _attempt in range(_ATTEMPTS):
                try:
                    os.rename(new, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                except IsADirectoryError:
                    remove(path, trusted=trusted)
                else:
                    return
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=parent)
    raise TreeError(f"{path} cannot be replaced: a directory is repeatedly created there")


def remove(path: Path, *, trusted: Path | None = None, seconds: float = 900.0) -> None:
    """Remove a file, a link or a tree, if it exists.

    Each directory is first moved to a trash directory that only root can access. Neither the depth nor the length of paths is
    therefore limited, and the next call completes an interrupted removal.

    :arg trusted: a directory above ``path`` that only root can write; its parent by default.
    :raises TreeError: if a file system is mounted in it, or its owner adds files faster than they are removed.
    """
    trusted = trusted or path.parent
    _require_no_mount(path)
    with contextlib.ExitStack() as stack:
        try:
            top = _open_trusted(stack, trusted)
            parent = _enter(stack, path.parent, trusted)
        except FileNotFoundError:
            return
        trash_name = f".removing-{path.name[:_NAME_LENGTH]}"
        if _unlink(path.name, parent, path) and not _exists(trash_name, top):
            return
        _make_trash(trash_name, top, path, parent)
        trash = _open(stack, trash_name, _DIRECTORY, top, trusted / trash_name)
        _move_to_trash(path.name, parent, trash, path)
        _empty_trash(trash, path, Deadline(seconds))
        try:
            os.rmdir(trash_name, dir_fd=top)
        except FileNotFoundError:
            pass  # removed by a concurrent call
        except OSError as error:
            raise TreeError(f"{path} cannot be removed within {seconds:g} s: new files are repeatedly created in it") from error


def copy(
    source: Path,
    target: Path,
    *,
    owner: int,
    uid: int = 0,
    gid: int = 0,
    mode: int = 0o755,
    limits: Limits | None = None,
    allow: Callable[[Path], bool] = lambda _path: False,
) -> None:
    """Copy a tree to ``target``, a new path in a directory owned by root; ``uid`` and ``gid`` own the copy.

    Timestamps are preserved. Directories and executables get mode 0755, other files 0644, and the top directory ``mode``:
    neither permissions nor open descriptors of the original give access to the copy.

    :arg owner: required owner of the files: hard links to files of other users are refused.
    :arg allow: whether a symbolic link may point to a path outside the tree.
    :raises TreeError: for other links to paths outside the tree, for files of other types, and if a limit is exceeded.
    """
    _Copy(source, target, owner, (uid, gid), limits or Limits(), allow).run(mode)


@dataclass
class _Level:
    """A directory that is being copied: its remaining names, descriptors and timestamps."""

    path: Path
    names: Iterator[str]
    source: int
    target: int
    times: tuple[int, int]
    stack: contextlib.ExitStack


@dataclass
class _Copy:
    """State of :func:`copy`."""

    source: Path
    target: Path
    owner: int
    ids: tuple[int, int]
    limits: Limits
    allow: Callable[[Path], bool]
    files: int = 0
    size: int = 0
    links: list[Path] = field(default_factory=list)
    deadline: Deadline = field(init=False)

    def run(self, mode: int) -> None:
        self.deadline = Deadline(self.limits.seconds)
        with contextlib.ExitStack() as stack:
            above = _open_trusted(stack, self.source.parent)
            beside = _open_trusted(stack, self.target.parent)
            levels = [self._begin(Path(), self.source.name, above, self.target.name, beside)]
            try:
                while levels:
                    name = next(levels[-1].names, None)
                    if name is None:
                        self._finish(levels.pop())
                    elif deeper := self._copy(levels[-1], name, len(levels)):
                        levels.append(deeper)
                self._check_links()
                self._set_mode(_open(stack, self.target.name, _DIRECTORY, beside, self.target), mode)
            except BaseException:
                remove(self.target)
                raise
            finally:
                for level in levels:
                    level.stack.close()

    def _begin(self, path: Path, name: str, parent: int, new: str, beside: int) -> _Level:
        """Create the copy of a directory, accessible only to root until it is complete."""
        with contextlib.ExitStack() as stack:
            source = _open(stack, name, _DIRECTORY, parent, self.source / path)
            state = os.fstat(source)
            self._require_owner(state, path)
            if state.st_dev != os.fstat(parent).st_dev:
                raise TreeError(f"{self.source / path}: another file system is mounted there")
            os.mkdir(new, 0o700, dir_fd=beside)
            target = _open(stack, new, _DIRECTORY, beside, self.target / path)
            times = (state.st_atime_ns, state.st_mtime_ns)
            return _Level(path, _scan(source), source, target, times, stack.pop_all())

    def _finish(self, level: _Level) -> None:
        with level.stack:
            if level.path.parts:
                self._set_mode(level.target, 0o755)
            os.utime(level.target, ns=level.times)

    def _copy(self, level: _Level, name: str, depth: int) -> _Level | None:
        path = level.path / name
        self.files += 1
        if self.files > self.limits.files:
            raise TreeError(f"{self.source} has more than {self.limits.files} files")
        if self.deadline.expired:
            raise TreeError(f"{self.source} cannot be copied within {self.limits.seconds:g} s")
        state = os.stat(name, dir_fd=level.source, follow_symlinks=False)
        if stat.S_ISDIR(state.st_mode):
            if depth >= self.limits.depth:
                raise TreeError(f"{self.source} has directories that are nested more than {self.limits.depth} deep")
            return self._begin(path, name, level.source, name, level.target)
        if stat.S_ISLNK(state.st_mode):
            os.symlink(os.readlink(name, dir_fd=level.source), name, dir_fd=level.target)
            os.chown(name, *self.ids, dir_fd=level.target, follow_symlinks=False)
            self.links.append(path)
        elif stat.S_ISREG(state.st_mode):
            self._copy_file(level, name, path)
        else:
            raise TreeError(f"{self.source / path} is not a file, directory or link")
        return None

    def _copy_file(self, level: _Level, name: str, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            source = _open(stack, name, _FILE, level.source, self.source / path)
            state = os.fstat(source)
            if not stat.S_ISREG(state.st_mode):
                raise TreeError(f"{self.source / path} is not a regular file")
            self._require_owner(state, path)
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=level.target)
            stack.callback(os.close, target)
            while count := os.sendfile(target, source, None, _CHUNK):
                self.size += count
                if self.size > self.limits.size:
                    raise TreeError(f"{self.source} has more than {self.limits.size >> 20} MiB")
                if self.deadline.expired:
                    raise TreeError(f"{self.source} cannot be copied within {self.limits.seconds:g} s")
                space = os.fstatvfs(target)
                if space.f_blocks and space.f_bavail * space.f_frsize < self.limits.free:  # some file systems report nothing
                    raise TreeError(
                        f"{self.source} cannot be copied: less than {self.limits.free >> 20} MiB would remain; {REMEDY}"
                    )
            self._set_mode(target, 0o755 if state.st_mode & 0o100 else 0o644)
            os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))

    def _set_mode(self, descriptor: int, mode: int) -> None:
        os.fchown(descriptor, *self.ids)
        os.fchmod(descriptor, mode)

    def _require_owner(self, state: os.stat_result, path: Path) -> None:
        if state.st_uid != self.owner:
            raise TreeError(f"{self.source / path} is owned by user {state.st_uid}, not by {self.owner}, who created the tree")

    def _check_links(self) -> None:
        """Check the targets of links in the copy, which its owner can no longer change."""
        for path in self.links:
            if self.deadline.expired:
                raise TreeError(f"the links in {self.source} cannot be checked within {self.limits.seconds:g} s")
            outside = _target_outside(self.target, self.target / path)
            if outside and not self.allow(outside):
                raise TreeError(f"{self.source / path} is a link to a path outside its tree, {outside}")


def _target_outside(top: Path, link: Path) -> Path | None:
    """Return the target of a link if it is outside the tree ``top``, following links inside; None otherwise."""
    here, parts = link.parent, list(reversed(link.readlink().parts))
    links = 1
    while parts:
        part = parts.pop()
        here = Path("/") if part == "/" else here.parent if part == ".." else here / part
        if not here.is_relative_to(top):
            return Path(os.path.normpath(here.joinpath(*reversed(parts))))
        if here.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                return None  # a loop
            parts += reversed(here.readlink().parts)
            here = here.parent
    return None


@contextlib.contextmanager
def _opened(path: Path, trusted: Path) -> Iterator[int]:
    """Open a regular file and yield its descriptor."""
    with contextlib.ExitStack() as stack:
        parent = _enter(stack, path.parent, trusted)
        descriptor = _open(stack, path.name, _FILE, parent, path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TreeError(f"{path} is not a regular file")
        yield descriptor


def _read(descriptor: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit and (chunk := os.read(descriptor, min(limit - len(data), _CHUNK))):
        data += chunk
    return bytes(data)


def _open_trusted(stack: contextlib.ExitStack, path: Path) -> int:
    """Open a directory that only root can write; links in its path were created by an administrator."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _enter(stack: contextlib.ExitStack, path: Path, trusted: Path) -> int:
    """Open a directory that is ``trusted`` or below it, on the same file system."""
    relative = path.relative_to(trusted)
    if ".." in relative.parts:
        raise TreeError(f"{path} is outside {trusted}")
    descriptor, here = _open_trusted(stack, trusted), trusted
    device = os.fstat(descriptor).st_dev
    for part in relative.parts:
        here /= part
        descriptor = _open(stack, part, _DIRECTORY, descriptor, here)
        if os.fstat(descriptor).st_dev != device:
            raise TreeError(f"{here}: another file system is mounted there")
    return descriptor


def _open(stack: contextlib.ExitStack, name: str, flags: int, directory: int, path: Path) -> int:
    """Open ``name`` in a directory; ``path`` is for the message."""
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _WRONG_KIND:
            kind = "directory" if flags & os.O_DIRECTORY else "regular file"
            raise TreeError(f"{path} is not a {kind}") from error
        raise
    stack.callback(os.close, descriptor)
    return descriptor


def _scan(descriptor: int) -> Iterator[str]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            yield entry.name


def _require_no_mount(path: Path) -> None:
    """Raise an error if a file system is mounted at or below a path: its files must not be removed."""
    resolved = path.parent.resolve() / path.name  # as the kernel lists mount points
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount_point = Path(line.split()[4].encode().decode("unicode_escape"))  # spaces are octal escapes, proc(5)
        if mount_point.is_relative_to(resolved):
            raise TreeError(f"{path} cannot be removed: a file system is mounted at {mount_point}; unmount it first")


def _exists(name: str, directory: int) -> bool:
    return _state(name, directory) is not None


def _state(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlink(name: str, directory: int, path: Path) -> bool:
    """Remove a file that is not a directory; return whether the name no longer exists."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EPERM):
            return False
        raise TreeError(f"{path} cannot be removed: {error.strerror}") from error
    return True


def _make_trash(name: str, top: int, path: Path, parent: int) -> None:
    """Create a trash directory in ``top``; on a full file system, delete files of the tree to be removed first."""
    try:
        os.mkdir(name, 0o700, dir_fd=top)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in FULL:
            raise
        _unlink_first(path, parent)
        os.mkdir(name, 0o700, dir_fd=top)


def _unlink_first(path: Path, parent: int) -> None:
    """Delete the files of a directory that has some, the directory at ``path`` or one below it."""
    with contextlib.ExitStack() as stack:
        names = [path.name]
        for _level in range(Limits.depth):
            parent = _open(stack, names[0], _DIRECTORY, parent, path)
            found = list(_scan(parent))
            names = [name for name in found if not _unlink(name, parent, path)]
            if len(names) < len(found) or not names:
                return


def _move_to_trash(name: str, directory: int, trash: int, path: Path) -> None:
    try:
        os.rename(name, os.urandom(16).hex(), src_dir_fd=directory, dst_dir_fd=trash)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TreeError(f"{path} cannot be removed: {name}: {error.strerror}") from error


def _empty_trash(trash: int, path: Path, deadline: Deadline) -> None:
    """Remove the contents of ``trash``; nested directories are moved up into it and emptied in the next round."""
    attempts: collections.Counter[str] = collections.Counter()
    while names := [name for name in _scan(trash) if attempts[name] < _ATTEMPTS]:
        attempts.update(names)
        for name in names:
            if _unlink(name, trash, path):
                continue
            with contextlib.ExitStack() as stack:
                directory = _open(stack, name, _DIRECTORY, trash, path)
                for nested in _scan(directory):
                    if deadline.expired:
                        return
                    if not _unlink(nested, directory, path):
                        _move_to_trash(nested, directory, trash, path)
            with contextlib.suppress(OSError):  # files were added meanwhile
                os.rmdir(name, dir_fd=trash)
