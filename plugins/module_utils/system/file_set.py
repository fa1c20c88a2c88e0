"""Files that a service reads as a whole: comparison with the desired state, validation, atomic replacement and rollback.

No live file changes before the daemon's own checker has accepted a staged copy of all of them. Each file is then replaced by a
rename, so readers never see partial content, and the previous files are restored if the service does not start with the new ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import operator
import os
import pwd
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import atomic
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.replaced_files import keep_copies

#: Seconds until the service must work with new files. HAProxy considers a server up after two checks.
VERIFICATION_SECONDS = 10.0

_DIFF_BYTES = 1 << 20

#: An absolute path in the output of a check.
_PATH = re.compile(r"/[^\s\":]+")


class FileSetError(Exception):
    """The files are invalid, were rejected by the check or broke the service. The message says what was not changed."""


@dataclass(frozen=True)
class File:
    """Desired state of a file; the content of a symbolic link (``is_link``) is its target.

    ``label`` names the variable that it is generated from, for messages. ``needs`` are other files that the check of the daemon
    reads because of it.
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
    """State of a file or symbolic link for comparison; the digest is a keyed hash of its content or target."""

    digest: str
    is_link: bool
    mode: int
    owner: str
    group: str
    mtime: float


@dataclass(frozen=True)
class ExistingFile:
    """A file or symbolic link on the host, with all that is needed to restore it."""

    content: bytes
    is_link: bool
    mode: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> ExistingFile | None:
        """Return the file at ``path``; None if it does not exist.

        :raises FileSetError: if it is of another type, such as a directory.
        """
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_link = stat.S_ISLNK(status.st_mode)
        if not is_link and not stat.S_ISREG(status.st_mode):
            raise FileSetError(f"{path} is not a file or symbolic link: move it away first")
        content = os.fsencode(path.readlink()) if is_link else path.read_bytes()
        return cls(content, is_link, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)

    def state(self, key: bytes = b"") -> FileState:
        """Return the state for comparison, with a digest by ``key``, which has at most 64 bytes."""
        owner, group = _user(self.uid), _group(self.gid)
        return FileState(_digest(self.content, key), self.is_link, self.mode, owner, group, self.mtime_ns / 1e9)


@dataclass(frozen=True)
class Change:
    """A file that differs from the desired state; ``after`` is None if it must be removed."""

    path: Path
    before: ExistingFile | None
    after: File | None

    def is_required(self, now: float) -> bool:
        """Return whether the file differs, or is newer than ``now``, because the clock of the host was set back since."""
        state = self.before.state() if self.before else None
        return not is_up_to_date(state, self.after) or (state is not None and state.mtime > now)

    def diff(self) -> dict[str, str]:
        """Return the change for Ansible's ``--diff``; without contents if it is secret or becomes readable by more users."""
        before, after = self.before, self.after
        was_private = before is not None and not before.mode & 0o004 and (after is None or bool(after.mode & 0o004))
        secret = was_private or (after is not None and after.secret)
        header = {"before_header": str(self.path), "after_header": str(self.path)}
        if secret:
            return {**header, "before": "(secret)\n" if before else "", "after": "(secret, changed)\n" if after else ""}
        old = _diff_text(before.content) if before else ""
        new = _diff_text(after.content) if after else ""
        if before and after and old == new:
            old = f"{'link' if before.is_link else 'file'}, mode {before.mode:04o}, owner {before.uid}, group {before.gid}\n"
            new = f"file, mode {after.mode:04o}, owner {after.owner}, group {after.group}\n"
        return {**header, "before": old, "after": new}


@dataclass(frozen=True)
class FileSet:
    """Desired files below ``root``, or elsewhere if their paths are absolute, and files that must not exist.

    ``owns`` are globs: matching files that are not in ``files`` are removed, unless they match a glob of ``keep``. ``absent`` are
    paths of single files. ``later`` are globs of files that a later task of the run repairs, if the check rejects one of them.
    """

    root: Path
    files: Sequence[File]
    owns: Sequence[str] = ()
    absent: Sequence[str] = ()
    keep: Sequence[str] = ()
    later: Sequence[str] = ()

    def desired(self, glob: Callable[[Path, str], Iterable[Path]]) -> dict[Path, File | None]:
        """Return the desired file, or None, by path, sorted; ``glob`` finds existing files below a directory."""
        present = {self.root / file.path: file for file in self.files}
        absent = {self.root / path for path in self.absent}
        for pattern in self.owns:
            found = glob(Path("/") if pattern.startswith("/") else self.root, pattern.lstrip("/"))
            absent.update(path for path in found if not any(path.match(str(self.root / kept)) for kept in self.keep))
        return {path: present.get(path) for path in sorted(present.keys() | absent)}

    def changes(self) -> list[Change]:
        """Return the differences from the desired state, sorted by path.

        :raises FileSetError: if a directory exists at the path of a file.
        """
        changes = [Change(path, ExistingFile.at(path), file) for path, file in self.desired(_glob).items()]
        now = time.time()
        return [change for change in changes if change.is_required(now)]

    @contextlib.contextmanager
    def staged(self, changes: Sequence[Change]) -> Iterator[Path]:
        """Yield a temporary copy of ``root``, beside it, with ``changes`` applied."""
        parent = next((path for path in self.root.parents if path.is_dir()), Path("/"))
        with tempfile.TemporaryDirectory(prefix=f".{self.root.name}.", suffix=".staged", dir=parent) as directory:
            copy = Path(directory) / self.root.name  # nested, because the copy gets the mode of the original
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

    def check(self, command: Sequence[str], changes: Sequence[Change]) -> str:
        """Run the daemon's check on a staged copy, whose path replaces ``{root}`` in ``command``.

        :returns: the output of the check if it rejects a file that a later task repairs; otherwise an empty text.
        :raises FileSetError: with the output of the check, the live paths and the rejected line.
        """
        if empty := [path for pattern in self.later for path in _glob(self.root, pattern) if not path.lstat().st_size]:
            return f"{empty[0]} is empty"  # truncated, which the check may accept
        with self.staged(changes) as copy:
            try:
                finished = run([word.replace("{root}", str(copy)) for word in command], check=False)
            except CommandError as error:
                raise FileSetError(f"{error}\n{self.root} was not changed.") from error
            if finished.status == 0:
                return ""
            output = last_lines(finished.output.replace(str(copy), str(self.root)))
        named = [Path(path) for line in output.splitlines() if "[warn]" not in line for path in _PATH.findall(line)]
        if any(path.match(str(self.root / pattern)) for path in named for pattern in self.later):
            return output
        raise FileSetError(f"{self._rejected_line(output)}{output}\n{self.root} was not changed.")

    def _rejected_line(self, output: str) -> str:
        """Return a line with the file that the ``output`` of a check names, its label and the text of the rejected line."""
        matches = []
        for file in self.files:
            path = self.root / file.path
            if named := re.search(re.escape(str(path)) + r"(?::(\d+))?(?![\w.-])", output):
                lines = file.content.decode(errors="replace").splitlines()
                number = int(named[1] or 0)
                quoted = f", line {number}: {lines[number - 1].strip()}" if 0 < number <= len(lines) and not file.secret else ""
                # Files with a line number come first: others may only include the rejected one.
                matches.append((not number, named.start(), f"{file.label or path} is refused{quoted}\n"))
        return min(matches, default=(False, 0, ""))[2]


class Transaction:
    """Applies changes to the live files, and can roll them back."""

    def __init__(self, changes: Sequence[Change]) -> None:
        """Prepare without writing anything."""
        self._changes = changes
        self._applied: list[Change] = []
        self._directories: list[Path] = []

    def apply(self) -> None:
        """Write all new files beside their targets, then rename them and remove obsolete files.

        :raises FileSetError: if that fails; the previous files have been restored.
        """
        try:
            with contextlib.ExitStack() as leftovers:
                staged_changes = [(change, self._stage(change, leftovers)) for change in self._changes]
                for change, staged in staged_changes:
                    self._applied.append(change)
                    if staged:
                        staged.replace(change.path)
                    else:
                        change.path.unlink(missing_ok=True)
        except (OSError, FileSetError) as error:
            self.roll_back()
            raise FileSetError(f"{error}; the files are in their previous state") from error

    def roll_back(self) -> None:
        """Restore the files that :meth:`apply` changed, including their timestamps."""
        for change in reversed(self._applied):
            before = change.before
            if before is None:
                change.path.unlink(missing_ok=True)
            elif before.is_link:
                atomic.replace_link(change.path, os.fsdecode(before.content))
            else:
                staged = atomic.stage_file(change.path, before.content, mode=before.mode, uid=before.uid, gid=before.gid)
                try:
                    os.utime(staged, ns=(before.mtime_ns, before.mtime_ns))
                    staged.replace(change.path)
                finally:
                    staged.unlink(missing_ok=True)
        for directory in reversed(self._directories):
            with contextlib.suppress(OSError):  # it contains other files by now
                directory.rmdir()
        self._applied.clear()

    def _stage(self, change: Change, leftovers: contextlib.ExitStack) -> Path | None:
        file = change.after
        if file is None:
            return None
        for directory in reversed([path for path in change.path.parents if not path.exists()]):
            directory.mkdir()
            self._directories.append(directory)
            directory.chmod(0o755)  # regardless of the umask
        if file.is_link:
            staged = atomic.stage_link(change.path, os.fsdecode(file.content))
        else:
            uid, gid = _uid(file.owner), _gid(file.group)
            if uid is None or gid is None:
                missing = f"user {file.owner}" if uid is None else f"group {file.group}"
                raise FileSetError(f"{change.path} must be owned by {missing}, which does not exist on this host")
            staged = atomic.stage_file(change.path, file.content, mode=file.mode, uid=uid, gid=gid)
        leftovers.callback(staged.unlink, missing_ok=True)
        return staged


@dataclass(frozen=True)
class FileSetResult:
    """Changed and removed paths and the action on the service (``""``: none), performed or, in check mode, predicted."""

    files: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    service: str = ""
    warnings: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return bool(self.files or self.removed or self.service not in {"", "deferred"})


def converge(
    file_set: FileSet,
    *,
    check: Sequence[str] = (),
    service: systemd.ServiceSpec | None = None,
    find_problems: Callable[[], Mapping[str, str]] = dict,
    check_mode: bool = False,
) -> FileSetResult:
    """Apply the desired state of the files and the service; on failure, restore the previous state of both.

    ``find_problems`` returns what does not work, by name, before and after the change. A new problem is a failure.

    In check mode nothing is changed, and the daemon's check runs only if the daemon and the files that it needs are installed, as
    an earlier task may be about to create them.

    :raises FileSetError: if the files are invalid or rejected, or the service does not start with them.
    """
    try:
        changes = file_set.changes()
        state = systemd.query(service.name) if service else None
        action = ""
        if service and state:
            action = systemd.required_action(
                service,
                state,
                changed=_has_stale_files(file_set, changes, service, state),
                listener_changed=bool(service.listener) and _has_stale_listener(file_set, changes, service.listener),
            )
        installed = shutil.which(check[0] if check else "") and (state is None or state.exists)
        complete = all(Path(path).exists() for file in file_set.files for path in file.needs)
        rejected = ""
        if (changes or (action and file_set.later)) and check and ((installed and complete) or not check_mode):
            rejected = file_set.check(check, changes)
        action = "" if rejected else action
        result = _result(changes, service, action)
        if rejected:
            result.warnings.append(f"files of a later task are damaged, which applies all of them together:\n{rejected}")
        files = [(change.path, change.before, change.after) for change in changes if change.before and not change.before.is_link]
        contents = {path: (before.content, after.content) for path, before, after in files if after}
        result.warnings.extend(keep_copies(contents, check_mode=check_mode))
        if not check_mode:
            _apply(changes, service, state, action, find_problems)
    except (OSError, systemd.ServiceError) as error:
        raise FileSetError(str(error)) from error
    return result


def _apply(
    changes: Sequence[Change],
    service: systemd.ServiceSpec | None,
    state: systemd.ServiceState | None,
    action: str,
    find_problems: Callable[[], Mapping[str, str]],
) -> None:
    known = find_problems() if changes else {}
    transaction = Transaction(changes)
    transaction.apply()
    try:
        systemd.reload_units(change.path for change in changes)
        if service and state and action not in {"", "deferred"}:
            systemd.activate(service, state, action)
        if changes:
            _require_no_new_problem(find_problems, known)
    except (CommandError, FileSetError, systemd.ServiceError) as error:
        transaction.roll_back()
        raise FileSetError(f"{error}\n{_restore_service(changes, service, state, action)}") from error


def _require_no_new_problem(find_problems: Callable[[], Mapping[str, str]], known: Mapping[str, str]) -> None:
    """Wait up to ``VERIFICATION_SECONDS`` until there are no other problems than before.

    :raises FileSetError: with the new ones.
    """

    def find() -> list[str]:
        return [f"{name}: {problem}" for name, problem in find_problems().items() if name not in known]

    if new := poll(find, operator.not_, timeout=VERIFICATION_SECONDS, interval=0.2):
        raise FileSetError("\n".join(new))


def _restore_service(
    changes: Sequence[Change], service: systemd.ServiceSpec | None, state: systemd.ServiceState | None, action: str
) -> str:
    """Make the service load the restored files; return a sentence about the result."""
    try:
        systemd.reload_units(change.path for change in changes)
        if service and state and state.active:
            current = systemd.query(service.name)
            previous = dataclasses.replace(service, udp_port=None)  # its previous port is unknown
            systemd.activate(previous, current, action if current.active else "start")
    except (CommandError, systemd.ServiceError) as error:
        return f"The previous files were restored, but the service was not: {error}"
    return (
        f"The previous files were restored{f', and {service.name} runs with them' if service and state and state.active else ''}."
    )


def _result(changes: Sequence[Change], service: systemd.ServiceSpec | None, action: str) -> FileSetResult:
    result = FileSetResult(
        files=[str(change.path) for change in changes if change.after],
        removed=[str(change.path) for change in changes if not change.after],
        service=action,
        diff=[change.diff() for change in changes],
    )
    if service and action == "deferred":
        result.warnings.append(
            f"{service.name} was not restarted, because that would stop the processes it runs: "
            "changes of its configuration take effect at its next start"
        )
    return result


def _has_stale_files(
    file_set: FileSet, changes: Sequence[Change], service: systemd.ServiceSpec, state: systemd.ServiceState
) -> bool:
    """Return whether the service has not loaded the desired files.

    Unchanged files may be newer than its last start or reload if an earlier run was interrupted in between.
    """
    if any(is_read_by_service(change.path, service.on_change) for change in changes):
        return True
    paths = [path for file in file_set.files if is_read_by_service(path := file_set.root / file.path, service.on_change)]
    return any(path.stat().st_mtime > state.loaded_at for path in paths if path.exists())


def _has_stale_listener(file_set: FileSet, changes: Sequence[Change], listener: str) -> bool:
    """Return whether systemd does not use the current version of a socket unit, perhaps since an interrupted run."""
    if any(systemd.is_unit(change.path) and change.path.name == listener for change in changes):
        return True
    paths = [file_set.root / file.path for file in file_set.files if Path(file.path).name == listener]
    return any(path.stat().st_mtime > systemd.query(listener).started_at for path in paths if path.exists())


def is_read_by_service(path: Path, on_change: str) -> bool:
    """Return whether the action ``on_change`` makes a service read a file: unit files take effect at a restart only."""
    return on_change in systemd.RESTARTING or not systemd.is_unit(path)


def is_up_to_date(state: FileState | None, file: File | None, key: bytes = b"") -> bool:
    """Return whether a state with a digest by ``key`` matches the desired file; None stands for no file."""
    if state is None or file is None:
        return state is None and file is None
    same = state.is_link == file.is_link and state.digest == _digest(file.content, key)
    return same and (file.is_link or (state.mode, state.owner, state.group) == (file.mode, file.owner, file.group))


def _digest(content: bytes, key: bytes) -> str:
    return blake2b(content, key=key).hexdigest()


def _glob(directory: Path, pattern: str) -> Iterator[Path]:
    return (path for path in directory.glob(pattern) if path.is_symlink() or path.is_file())


def _user(uid: int) -> str:
    """Return the name of a user, or its id if there is no such user."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _uid(name: str) -> int | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def _gid(name: str) -> int | None:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    return None


def _diff_text(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "(binary)\n"
    return text if len(content) <= _DIFF_BYTES else "(larger than 1 MiB)\n"
