"""Access to files and directories that a less privileged user can change, without following what that user puts there.

Every path is walked from a directory that only root can change, one component at a time, through file descriptors that never
follow a link. Sizes, numbers, depths and times are bounded, and no operation crosses into another file system.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: O_NONBLOCK: a pipe is opened and refused instead of waited for, and so is a file with a lease.
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | _SAFE
_FILE = os.O_RDONLY | _SAFE

#: How opening a path fails that is not what it should be: a link, a socket or a device, or something below a file.
_WRONG_KIND = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.EAGAIN)

_CHUNK = 1 << 20

#: How often :func:`remove` empties a directory that its owner fills again meanwhile.
_ATTEMPTS = 100

#: Characters of a removed path that the directory is named by in which it is emptied.
_NAMED = 50

#: Links that lead to links, after which the kernel gives up as well.
_MAX_LINKS = 40


class TreeError(Exception):
    """A path is not what it should be, or exceeds a limit. The message names the path."""


@dataclass(frozen=True)
class Limits:
    """What a tree may have: ``files`` of any kind, ``size`` in bytes, ``depth`` of directories, ``seconds`` to copy it."""

    files: int = 500_000
    size: int = 32 << 30
    depth: int = 100
    seconds: float = 900.0


def read(path: Path, limit: int, *, trusted: Path) -> bytes:
    """Return the content of a regular file below ``trusted``, a directory that only root can change.

    :raises FileNotFoundError: when it does not exist.
    :raises TreeError: when it is anything but a regular file, is reached through a link, or has more than ``limit`` bytes.
    """
    with _opened(path, trusted) as descriptor:
        data = _read(descriptor, limit + 1)
    if len(data) > limit:
        raise TreeError(f"{path} has more than {limit} bytes")
    return data


def read_end(path: Path, limit: int, *, trusted: Path, start: int = 0) -> bytes:
    """Return at most the last ``limit`` bytes of a regular file below ``trusted``, and nothing from before ``start``.

    A file that is shorter than ``start`` was begun anew, and is read from its beginning.

    :raises FileNotFoundError: when it does not exist.
    :raises TreeError: when it is anything but a regular file, or is reached through a link.
    """
    with _opened(path, trusted) as descriptor:
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(size - limit, start if start <= size else 0), os.SEEK_SET)
        return _read(descriptor, limit)


def names(path: Path, limit: int, *, trusted: Path) -> list[str]:
    """Return the sorted names of what a directory below ``trusted``, or ``trusted`` itself, contains.

    :raises FileNotFoundError: when it does not exist.
    :raises TreeError: when it is no directory, is reached through a link, or contains more than ``limit`` names.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _enter(stack, path, trusted)
        found = list(itertools.islice(_scan(descriptor), limit + 1))
    if len(found) > limit:
        raise TreeError(f"{path} contains more than {limit} names")
    return sorted(found)


def files(top: Path) -> Iterator[Path]:
    """Yield the regular files of a tree that is root's; links are neither followed nor yielded."""
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = directory / entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path


def state(path: Path, *, trusted: Path) -> os.stat_result | None:
    """Return the state of a file of any kind below ``trusted``, of a link its own; None if it does not exist.

    :raises TreeError: when it is reached through a link.
    """
    with contextlib.ExitStack() as stack:
        try:
            parent = _enter(stack, path.parent, trusted)
        except FileNotFoundError:
            return None
        return _state(path.name, parent)


def move(path: Path, target: Path, *, trusted: Path) -> None:
    """Rename a file of any kind below ``trusted``, to a path below it.

    :raises FileNotFoundError: when it does not exist.
    :raises TreeError: when one of the two is reached through a link.
    """
    with contextlib.ExitStack() as stack:
        here, there = _enter(stack, path.parent, trusted), _enter(stack, target.parent, trusted)
        os.rename(path.name, target.name, src_dir_fd=here, dst_dir_fd=there)


def replace_link(path: Path, target: str, *, trusted: Path) -> None:
    """Make a link of root's below ``trusted``, in the place of whatever is there.

    :raises TreeError: when the directory's owner puts something else there all the time.
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
    raise TreeError(f"{path} cannot be replaced: a directory appears there all the time")


def remove(path: Path, *, trusted: Path | None = None, seconds: float = 900.0) -> None:
    """Remove a file, a link or a whole tree; nothing happens if it does not exist.

    Each directory is first moved into a directory of root's, where nobody else reaches it by a path. So neither depth nor the
    length of paths matter, and what was broken off is completed by the next call.

    :arg trusted: a directory above ``path`` that only root can change; by default the one that contains it.
    :raises TreeError: when a file system is mounted in it, or when its owner fills it faster than it is emptied.
    """
    trusted = trusted or path.parent
    _require_no_mount(path)
    with contextlib.ExitStack() as stack:
        try:
            top = _open_trusted(stack, trusted)
            parent = _enter(stack, path.parent, trusted)
        except FileNotFoundError:
            return
        doomed = f".removing-{path.name[:_NAMED]}"
        if _unlink(path.name, parent, path) and not _exists(doomed, top):
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(doomed, 0o700, dir_fd=top)
        grave = _open(stack, doomed, _DIRECTORY, top, trusted / doomed)
        _bury(path.name, parent, grave, path)
        _empty(grave, path, time.monotonic() + seconds)
        try:
            os.rmdir(doomed, dir_fd=top)
        except FileNotFoundError:
            pass  # another call has completed the same
        except OSError as error:
            raise TreeError(f"{path} cannot be removed within {seconds:g} s: new files appear in it all the time") from error


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
    """Copy a tree to new files of ``uid`` and ``gid``; ``target`` must not exist, and appears in a directory that is root's.

    Times are kept. Directories and programs get the mode 0755, other files 0644, and the top directory ``mode``: no right of
    the original lives on in the copy, nor does any descriptor of it.

    :arg owner: whose the files have to be: a hard link to a file of somebody else is refused.
    :arg allow: whether a symbolic link may lead to a path outside of the tree.
    :raises TreeError: for a link that leads elsewhere out of the tree, for anything but files, directories and links, and beyond
        a limit.
    """
    _Copy(source, target, owner, (uid, gid), limits or Limits(), allow).run(mode)


@dataclass
class _Level:
    """A directory that is being copied: what is to be copied, its descriptors, and the times that it gets in the end."""

    path: Path
    names: Iterator[str]
    source: int
    target: int
    times: tuple[int, int]
    stack: contextlib.ExitStack


@dataclass
class _Copy:
    """One run of :func:`copy`."""

    source: Path
    target: Path
    owner: int
    ids: tuple[int, int]
    limits: Limits
    allow: Callable[[Path], bool]
    files: int = 0
    size: int = 0
    links: list[Path] = field(default_factory=list)
    deadline: float = 0.0

    def run(self, mode: int) -> None:
        self.deadline = time.monotonic() + self.limits.seconds
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
        """Make the copy of a directory, for nobody but root until all of it is there."""
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
        if time.monotonic() > self.deadline:
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
            raise TreeError(f"{self.source / path} is neither a file nor a directory nor a link")
        return None

    def _copy_file(self, level: _Level, name: str, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            source = _open(stack, name, _FILE, level.source, self.source / path)
            state = os.fstat(source)
            if not stat.S_ISREG(state.st_mode):
                raise TreeError(f"{self.source / path} is no regular file")
            self._require_owner(state, path)
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=level.target)
            stack.callback(os.close, target)
            while count := os.sendfile(target, source, None, _CHUNK):
                self.size += count
                if self.size > self.limits.size:
                    raise TreeError(f"{self.source} has more than {self.limits.size >> 20} MiB")
                if time.monotonic() > self.deadline:
                    raise TreeError(f"{self.source} cannot be copied within {self.limits.seconds:g} s")
            self._set_mode(target, 0o755 if state.st_mode & 0o100 else 0o644)
            os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))

    def _set_mode(self, descriptor: int, mode: int) -> None:
        os.fchown(descriptor, *self.ids)
        os.fchmod(descriptor, mode)

    def _require_owner(self, state: os.stat_result, path: Path) -> None:
        if state.st_uid != self.owner:
            raise TreeError(f"{self.source / path} belongs to user {state.st_uid}, not to {self.owner}, as whom it was made")

    def _check_links(self) -> None:
        """See where the links of the copy lead: nobody can change them any more."""
        for path in self.links:
            outside = _leads_out(self.target, self.target / path)
            if outside and not self.allow(outside):
                raise TreeError(f"{self.source / path} is a link that leads out of its tree, to {outside}")


def _leads_out(top: Path, link: Path) -> Path | None:
    """Return where a link leaves the tree ``top``, whose own links are followed; None when it does not."""
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
                return None  # a loop: it leads nowhere
            parts += reversed(here.readlink().parts)
            here = here.parent
    return None


@contextlib.contextmanager
def _opened(path: Path, trusted: Path) -> Iterator[int]:
    """Give a descriptor of a regular file."""
    with contextlib.ExitStack() as stack:
        parent = _enter(stack, path.parent, trusted)
        descriptor = _open(stack, path.name, _FILE, parent, path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TreeError(f"{path} is no regular file")
        yield descriptor


def _read(descriptor: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit and (chunk := os.read(descriptor, min(limit - len(data), _CHUNK))):
        data += chunk
    return bytes(data)


def _open_trusted(stack: contextlib.ExitStack, path: Path) -> int:
    """Open a directory that only root can change: a link on the way to it is an administrator's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _enter(stack: contextlib.ExitStack, path: Path, trusted: Path) -> int:
    """Open a directory that is ``trusted`` or lies below it, on the same file system."""
    relative = path.relative_to(trusted)
    if ".." in relative.parts:
        raise TreeError(f"{path} leads out of {trusted}")
    descriptor, here = _open_trusted(stack, trusted), trusted
    device = os.fstat(descriptor).st_dev
    for part in relative.parts:
        here /= part
        descriptor = _open(stack, part, _DIRECTORY, descriptor, here)
        if os.fstat(descriptor).st_dev != device:
            raise TreeError(f"{here}: another file system is mounted there")
    return descriptor


def _open(stack: contextlib.ExitStack, name: str, flags: int, directory: int, path: Path) -> int:
    """Open what ``name`` is in a directory; ``path`` is for the message."""
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _WRONG_KIND:
            kind = "directory" if flags & os.O_DIRECTORY else "regular file"
            raise TreeError(f"{path} is no {kind}") from error
        raise
    stack.callback(os.close, descriptor)
    return descriptor


def _scan(descriptor: int) -> Iterator[str]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            yield entry.name


def _require_no_mount(path: Path) -> None:
    """See that no file system is mounted at or below a path: it is not for us to empty."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))  # proc(5): blanks are written in octal digits
        if point.is_relative_to(path):
            raise TreeError(f"{path} cannot be removed: a file system is mounted at {point}; unmount it first")


def _exists(name: str, directory: int) -> bool:
    return _state(name, directory) is not None


def _state(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlink(name: str, directory: int, path: Path) -> bool:
    """Remove what is no directory; return whether nothing of that name is left."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EPERM):
            return False
        raise TreeError(f"{path} cannot be removed: {error.strerror}") from error
    return True


def _bury(name: str, directory: int, grave: int, path: Path) -> None:
    """Move a directory to where :func:`_empty` empties it."""
    try:
        os.rename(name, os.urandom(16).hex(), src_dir_fd=directory, dst_dir_fd=grave)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TreeError(f"{path} cannot be removed: {name}: {error.strerror}") from error


def _empty(grave: int, path: Path, deadline: float) -> None:
    """Remove what ``grave`` contains; directories further down are moved up into it, and are emptied in the next round."""
    attempts: collections.Counter[str] = collections.Counter()
    while found := [name for name in _scan(grave) if attempts[name] < _ATTEMPTS]:
        attempts.update(found)
        for name in found:
            if _unlink(name, grave, path):
                continue
            with contextlib.ExitStack() as stack:
                directory = _open(stack, name, _DIRECTORY, grave, path)
                for inside in _scan(directory):
                    if time.monotonic() > deadline:
                        return
                    if not _unlink(inside, directory, path):
                        _bury(inside, directory, grave, path)
            with contextlib.suppress(OSError):  # new files have appeared in it
                os.rmdir(name, dir_fd=grave)
