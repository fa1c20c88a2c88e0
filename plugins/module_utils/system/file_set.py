"""A set of files that a service reads as a whole: compare, check a staged copy, swap, and go back if it does not work.

The order is the point. Nothing that is live changes before the daemon's own checker has accepted a copy of everything
with the new files in it; each file is then replaced by a rename, so no reader ever sees half of one; and the files of
before come back when the service does not take the new ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, ClassVar

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Pattern, parse_each
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: Below these a changed file is a unit's: systemd has to read it again, the service itself does not.
UNIT_DIRECTORIES = (Path("/etc/systemd/system"),)

_DIFF_BYTES = 1 << 20


class FileSetError(Exception):
    """The set is wrong, was refused by its check or did not work. The message says what was left as it was."""


@dataclass(frozen=True)
class File:
    """A file as it has to be; of a symbolic link (``is_link``) the content is its target, as `os.readlink` gives it.

    ``label`` names the variable it was made from, for messages about it. ``needs`` are files elsewhere that the check of the
    daemon reads because of it.
    """

    path: str
    content: bytes
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    label: str = ""
    is_link: bool = False
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class FileState:
    """What tells of a file or symbolic link whether it is right; the digest is a keyed one of its content, or of its target."""

    digest: str
    is_link: bool
    mode: int
    owner: str
    group: str
    mtime: float


@dataclass(frozen=True)
class ExistingFile:
    """A file or symbolic link as it was found, complete enough to be put back."""

    content: bytes
    is_link: bool
    mode: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> ExistingFile | None:
        """Return what is at ``path``, or ``None`` if nothing is.

        :raises FileSetError: when that is a directory or a device.
        """
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_link = stat.S_ISLNK(found.st_mode)
        if not is_link and not stat.S_ISREG(found.st_mode):
            raise FileSetError(f"{path} is neither a file nor a symbolic link: move it away first")
        content = os.fsencode(path.readlink()) if is_link else path.read_bytes()
        return cls(content, is_link, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)

    def state(self, key: bytes = b"") -> FileState:
        """Return what tells whether it is right, to who has the ``key`` of at most 64 bytes."""
        owner, group = _user(self.uid), _group(self.gid)
        return FileState(_digest(self.content, key), self.is_link, self.mode, owner, group, self.mtime_ns / 1e9)


@dataclass(frozen=True)
class Change:
    """One file that is not as it has to be: ``after`` is ``None`` when it has to go."""

    path: Path
    before: ExistingFile | None
    after: File | None

    def diff(self) -> dict[str, str]:
        """Return the change as Ansible's ``--diff`` shows it; of what fewer might read before than after only that it changes."""
        before, after = self.before, self.after
        kept = before is not None and not before.mode & 0o004 and (after is None or bool(after.mode & 0o004))
        secret = kept or (after is not None and after.secret)
        header = {"before_header": str(self.path), "after_header": str(self.path)}
        if secret:
            return {**header, "before": "(secret)\n" if before else "", "after": "(secret, changed)\n" if after else ""}
        old = _shown(before.content) if before else ""
        new = _shown(after.content) if after else ""
        if before and after and old == new:
            old = f"{_kind(before)}, mode {before.mode:04o}, owner {before.uid}, group {before.gid}\n"
            new = f"file, mode {after.mode:04o}, owner {after.owner}, group {after.group}\n"
        return {**header, "before": old, "after": new}


@dataclass(frozen=True)
class FileSet:
    """Files below ``root`` (absolute paths: elsewhere), and what must not be there.

    ``owns`` are globs: what they match and ``files`` does not name is removed. ``absent`` names single files.
    """

    root: Path
    files: Sequence[File]
    owns: Sequence[str] = ()
    absent: Sequence[str] = ()

    def desired(self, glob: Callable[[Path, str], Iterable[Path]]) -> dict[Path, File | None]:
        """Return what has to be where, sorted by path; ``glob`` finds the files that there are below a directory."""
        wanted = {self.root / file.path: file for file in self.files}
        unwanted = {self.root / path for path in self.absent}
        for pattern in self.owns:
            unwanted.update(glob(Path("/") if pattern.startswith("/") else self.root, pattern.lstrip("/")))
        return {path: wanted.get(path) for path in sorted(wanted.keys() | unwanted)}

    def changes(self) -> list[Change]:
        """Return what differs from the set, sorted by path.

        :raises FileSetError: when a directory is where a file has to be.
        """
        changes = [Change(path, ExistingFile.at(path), file) for path, file in self.desired(_glob).items()]
        return [change for change in changes if not is_up_to_date(change.before.state() if change.before else None, change.after)]

    @contextlib.contextmanager
    def staged(self, changes: Sequence[Change]) -> Iterator[Path]:
        """Give a copy of ``root`` with ``changes`` made in it, next to ``root``; it is removed afterwards."""
        parent = next((path for path in self.root.parents if path.is_dir()), Path("/"))
        with tempfile.TemporaryDirectory(prefix=f".{self.root.name}.", suffix=".staged", dir=parent) as directory:
            copy = Path(directory) / self.root.name  # inside, because a copied directory takes on the mode of its original
            if self.root.is_dir():
                shutil.copytree(self.root, copy, symlinks=True)
            inside = [change for change in changes if change.path.is_relative_to(self.root)]
            for change in inside:
                target = copy / change.path.relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                if change.after and change.after.is_link:
                    target.symlink_to(os.fsdecode(change.after.content))
                elif change.after:
                    target.write_bytes(change.after.content)
            yield copy

    def check(self, command: Sequence[str], changes: Sequence[Change]) -> None:
        """Let the daemon check a staged copy: ``{root}`` in ``command`` stands for the copy's path.

        :raises FileSetError: in the daemon's own words, with the live paths and the line it complains about.
        """
        with self.staged(changes) as copy:
            try:
                finished = run([word.replace("{root}", str(copy)) for word in command], check=False)
            except CommandError as error:
                raise FileSetError(f"{error}\n{self.root} was not changed.") from error
            if finished.status != 0:
                words = last_lines(finished.output.replace(str(copy), str(self.root)))
                raise FileSetError(f"{self._blamed(words)}{words}\n{self.root} was not changed.")

    def _blamed(self, words: str) -> str:
        """Return a line naming the file of the set that ``words`` complain about, its origin and the line's text."""
        blamed = []
        for file in self.files:
            path = self.root / file.path
            if named := re.search(re.escape(str(path)) + r"(?::(\d+))?(?![\w.-])", words):
                lines = file.content.decode(errors="replace").splitlines()
                number = int(named[1] or 0)
                quoted = f", line {number}: {lines[number - 1].strip()}" if 0 < number <= len(lines) and not file.secret else ""
                # A file with a line number is the culprit; one without may be the start of the includes that led there.
                blamed.append((not number, named.start(), f"{file.label or path} is refused{quoted}\n"))
        return min(blamed, default=(False, 0, ""))[2]


class Swap:
    """Make changes live, and take them back if asked to."""

    def __init__(self, changes: Sequence[Change]) -> None:
        """Write nothing yet."""
        self._changes = changes
        self._made: list[Change] = []
        self._directories: list[Path] = []

    def make(self) -> None:
        """Write every new file next to its place, then rename them all and remove what has to go.

        :raises FileSetError: when that is not possible; what had been changed by then is as before again.
        """
        try:
            with contextlib.ExitStack() as leftovers:
                new = [(change, self._prepare(change, leftovers)) for change in self._changes]
                for change, ready in new:
                    self._made.append(change)
                    if ready:
                        ready.replace(change.path)
                    else:
                        change.path.unlink(missing_ok=True)
        except (OSError, FileSetError) as error:
            self.undo()
            raise FileSetError(f"{error}; the files are as they were") from error

    def undo(self) -> None:
        """Put back what :meth:`make` changed, times included."""
        with contextlib.ExitStack() as leftovers:
            for change in reversed(self._made):
                before = change.before
                if before is None:
                    change.path.unlink(missing_ok=True)
                elif before.is_link:
                    _link_beside(change.path, before.content, leftovers).replace(change.path)
                else:
                    ready = _write_beside(change.path, before.content, before.mode, before.uid, before.gid, leftovers)
                    os.utime(ready, ns=(before.mtime_ns, before.mtime_ns))
                    ready.replace(change.path)
            for directory in reversed(self._directories):
                with contextlib.suppress(OSError):  # somebody else may have put something there
                    directory.rmdir()
        self._made.clear()

    def _prepare(self, change: Change, leftovers: contextlib.ExitStack) -> Path | None:
        if change.after is None:
            return None
        for directory in reversed([path for path in change.path.parents if not path.exists()]):
            directory.mkdir()
            self._directories.append(directory)
            directory.chmod(0o755)  # whatever the umask is
        file = change.after
        if file.is_link:
            return _link_beside(change.path, file.content, leftovers)
        uid, gid = _uid(file.owner), _gid(file.group)
        if uid is None or gid is None:
            who = f"user {file.owner}" if uid is None else f"group {file.group}"
            raise FileSetError(f"{change.path} has to belong to {who}, which does not exist on this host")
        return _write_beside(change.path, file.content, file.mode, uid, gid, leftovers)


@dataclass(frozen=True)
class FileSetResult:
    """What was done, or would be: changed and removed paths, and what happened to the service (``""``: nothing)."""

    files: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    service: str = ""
    warnings: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, different afterwards."""
        return bool(self.files or self.removed or self.service not in {"", "deferred"})


def converge(
    file_set: FileSet, *, check: Sequence[str] = (), service: systemd.ServiceSpec | None = None, check_mode: bool = False
) -> FileSetResult:
    """Make the files and the service what they have to be, or leave both as they were.

    In check mode everything is compared and, if the daemon is installed and finds what files need, checked, but nothing is
    changed: an earlier task would have made what is missing.

    :raises FileSetError: when the files are wrong, refused, or the service does not take them.
    """
    try:
        changes = file_set.changes()
        state = systemd.query(service.name) if service else None
        action = ""
        if service and state:
            action = systemd.required_action(
                service,
                state,
                changed=_concerns_service(file_set, changes, service, state),
                listener_changed=bool(service.listener) and _concerns_listener(file_set, changes, service.listener),
            )
        installed = shutil.which(check[0] if check else "") and (state is None or state.exists)
        complete = all(Path(path).exists() for file in file_set.files for path in file.needs)
        if changes and check and ((installed and complete) or not check_mode):
            file_set.check(check, changes)
        if not check_mode:
            _carry_out(changes, service, state, action)
    except (OSError, systemd.ServiceError) as error:
        raise FileSetError(str(error)) from error
    return _outcome(changes, service, action)


def _carry_out(
    changes: Sequence[Change], service: systemd.ServiceSpec | None, state: systemd.ServiceState | None, action: str
) -> None:
    swap = Swap(changes)
    swap.make()
    try:
        _reload_units(changes)
        if service and state and action not in {"", "deferred"}:
            systemd.activate(service, state, action)
    except (CommandError, systemd.ServiceError) as error:
        swap.undo()
        raise FileSetError(f"{error}\n{_back_to_before(changes, service, state, action)}") from error


def _back_to_before(
    changes: Sequence[Change], service: systemd.ServiceSpec | None, state: systemd.ServiceState | None, action: str
) -> str:
    """Let the service read the files that are back, and return a sentence that says how it stands now."""
    try:
        _reload_units(changes)
        if service and state and state.active:
            again = systemd.query(service.name)
            before = dataclasses.replace(service, udp_port=None)  # it may have been another one
            systemd.activate(before, again, action if again.active else "start")
    except (CommandError, systemd.ServiceError) as error:
        return f"The files of before are back, but not the service: {error}"
    kept = f", and {service.name} runs with them" if service and state and state.active else ""
    return f"The files of before are back{kept}."


def _outcome(changes: Sequence[Change], service: systemd.ServiceSpec | None, action: str) -> FileSetResult:
    outcome = FileSetResult(
        files=[str(change.path) for change in changes if change.after],
        removed=[str(change.path) for change in changes if not change.after],
        service=action,
        diff=[change.diff() for change in changes],
    )
    if service and action == "deferred":
        outcome.warnings.append(
            f"{service.name} was not restarted, because that would stop the processes it runs: "
            "what changed in its configuration takes effect at its next start"
        )
    return outcome


def _concerns_service(
    file_set: FileSet, changes: Sequence[Change], service: systemd.ServiceSpec, state: systemd.ServiceState
) -> bool:
    """Tell whether the service has not read the files as they have to be.

    A file may also be newer than the service's last start or reload: an earlier run was cut off in between.
    """
    if any(is_read_by_service(change.path, service.on_change) for change in changes):
        return True
    paths = [file_set.root / file.path for file in file_set.files]
    return any(
        path.stat().st_mtime > state.loaded_at for path in paths if is_read_by_service(path, service.on_change) and path.exists()
    )


def _concerns_listener(file_set: FileSet, changes: Sequence[Change], listener: str) -> bool:
    """Tell whether systemd does not listen as the unit of that name has it, which an earlier run may have left so."""
    if any(is_unit(change.path) and change.path.name == listener for change in changes):
        return True
    state = systemd.query(listener)
    paths = [file_set.root / file.path for file in file_set.files if Path(file.path).name == listener]
    return any(path.stat().st_mtime > state.started_at for path in paths if path.exists())


def _reload_units(changes: Sequence[Change]) -> None:
    if any(is_unit(change.path) for change in changes):
        run(["systemctl", "daemon-reload"])


def is_unit(path: Path) -> bool:
    """Tell whether a file is a unit's."""
    return any(path.is_relative_to(directory) for directory in UNIT_DIRECTORIES)


def is_read_by_service(path: Path, on_change: str) -> bool:
    """Tell whether a service reads a file when what ``on_change`` names is done: a unit it has only been started with."""
    return on_change in systemd.RESTARTING or not is_unit(path)


def is_up_to_date(found: FileState | None, file: File | None, key: bytes = b"") -> bool:
    """Tell whether that, with a digest by ``key``, is how the file has to be, which may be not to be there."""
    if found is None or file is None:
        return found is None and file is None
    same = found.is_link == file.is_link and found.digest == _digest(file.content, key)
    return same and (file.is_link or (found.mode, found.owner, found.group) == (file.mode, file.owner, file.group))


def _digest(content: bytes, key: bytes) -> str:
    return blake2b(content, key=key).hexdigest()


def _glob(directory: Path, pattern: str) -> Iterator[Path]:
    return (path for path in directory.glob(pattern) if path.is_symlink() or path.is_file())


def _user(uid: int) -> str:
    """Return a user's name, or the id of one that is no more."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _uid(name: str) -> int | None:
    """Return the id of a user, or ``None``: in check mode it may be one that an earlier task would have made."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def _gid(name: str) -> int | None:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    return None


def _write_beside(path: Path, content: bytes, mode: int, uid: int, gid: int, leftovers: contextlib.ExitStack) -> Path:
    """Write a file to be renamed to ``path``; a dot before its name and a suffix behind keep it out of includes."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    ready = Path(name)
    leftovers.callback(ready.unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        os.fchown(stream.fileno(), uid, gid)
        os.fchmod(stream.fileno(), mode)
    return ready


def _link_beside(path: Path, target: bytes, leftovers: contextlib.ExitStack) -> Path:
    """Make a symbolic link to be renamed to ``path``."""
    ready = path.with_name(f".{path.name}.link.new")
    ready.unlink(missing_ok=True)
    leftovers.callback(ready.unlink, missing_ok=True)
    ready.symlink_to(os.fsdecode(target))
    return ready


def _kind(existing: ExistingFile) -> str:
    return "link" if existing.is_link else "file"


def _shown(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "(binary)\n"
    return text if len(content) <= _DIFF_BYTES else "(larger than 1 MiB)\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How a task describes a file, once its template has been rendered, or a symbolic link by its target."""

    EXACTLY_ONE: ClassVar = ("content", "link")

    content: str = ""
    link: str = ""
    mode: Annotated[str, Pattern(r"0?[0-7]{3}", 'octal in quotes, such as "0640"')] = "0644"
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    label: str = ""
    needs: list[str] = field(default_factory=list)


def parse_files(entries: Mapping[str, object]) -> list[File]:
    """Return the files that a task's ``files`` describes.

    :raises FileSetError: naming every wrong path, key or value.
    """
    problems = [
        f"files.{path}: a path has to name a file, without .."
        for path in entries
        if not path or path.endswith("/") or ".." in Path(path).parts
    ]
    parsed = parse_each(Entry, entries, "files", problems)
    if problems:
        raise FileSetError("\n".join(problems))
    return [
        File(
            path,
            os.fsencode(one.link or one.content),
            int(one.mode, 8),
            one.owner,
            one.group,
            one.secret,
            one.label,
            is_link=bool(one.link),
            needs=one.needs,
        )
        for path, one in parsed.items()
    ]
