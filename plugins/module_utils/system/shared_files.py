"""Access to the shared data of an app: a program that :mod:`shared_data` runs as the user of the app.

``shared_files.py COMMAND DIRECTORY OPTIONS``, with options in JSON. It has no permissions beyond those of the app, so links and
anything else that the app leaves in the directory give it no access to other files. It must not import other modules.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

#: Directories for unfinished copies, in the directory of the shared data, one for each purpose.
PROVIDING, BACKING_UP, RESTORING = ".funnel-provide", ".funnel-backup", ".funnel-restore"

#: Directory of a backup that is being restored, in `RESTORING`.
RESTORED = "restored"

SQLITE = b"SQLite format 3\0"

#: Suffixes of the files that SQLite keeps beside a database; a consistent copy contains their content.
SQLITE_COMPANIONS = ("-wal", "-shm", "-journal")

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

#: Flags of reading: follow no link, and do not wait for the writer of a pipe.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

#: Mask of new files: those of the processes of the app, see launch.py.
UMASK = 0o007


def provide(shared: Path, seeds: str, paths: list[str], served: list[str], acls: dict[str, str]) -> None:
    """Create the missing paths from ``seeds``, a directory of the release, and make those in ``served`` readable by nginx."""
    with work_directory(shared / PROVIDING) as work:
        for path in paths:
            seed, target = Path(seeds, path), shared / path
            if os.path.lexists(target) or not seed.exists():
                continue
            new = work / "seed"
            if seed.is_dir():
                shutil.copytree(seed, new, symlinks=True, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(seed, new)
            target.parent.mkdir(parents=True, exist_ok=True)
            new.rename(target)
    grant(shared, served, acls)


def grant(shared: Path, served: list[str], acls: dict[str, str]) -> None:
    """Give nginx read access by ``acls``, access control lists in hexadecimal; new files inherit them."""
    traverse, directory, file = (bytes.fromhex(acls[name]) for name in ("traverse", "directory", "file"))
    for path in served:
        top = shared / path
        for parent in (shared, *reversed([shared / parent for parent in Path(path).parents if parent.name])):
            if read_acl(parent, ACCESS) != traverse:
                os.setxattr(parent, ACCESS, traverse)
        if read_acl(top, DEFAULT) == directory:
            continue
        for here, _directories, names in os.walk(top, topdown=False, onerror=fail):  # the top, which marks the end, comes last
            for name in names:
                if stat.S_ISREG(os.lstat(Path(here, name)).st_mode):
                    os.setxattr(Path(here, name), ACCESS, file)
            os.setxattr(here, ACCESS, directory)
            os.setxattr(here, DEFAULT, directory)


def read_acl(path: Path, name: str) -> bytes:
    """Return an access control list of a file; empty if it has none."""
    with contextlib.suppress(OSError):
        return os.getxattr(path, name)
    return b""


def back_up(shared: Path, paths: list[str]) -> None:
    """Write the paths as a tar file to standard input, a file that is open for writing."""
    with (
        work_directory(shared / BACKING_UP) as work,
        open(0, "wb", closefd=False) as file,
        tarfile.open(fileobj=file, mode="w|") as archive,
    ):
        for path in paths:
            for found in walk(shared / path):
                try:
                    add(archive, found, str(found.relative_to(shared)), work / "database")
                except FileNotFoundError:
                    continue  # removed meanwhile
                except (OSError, sqlite3.Error) as error:
                    raise OSError(f"{found} cannot be backed up: {error}") from error


def walk(top: Path) -> Iterator[Path]:
    """Yield a path and all below it, without following links."""
    if os.path.lexists(top):
        yield top
    if top.is_symlink() or not top.is_dir():
        return
    for here, directories, names in os.walk(top, onerror=fail):
        yield from (Path(here, name) for name in sorted([*directories, *names]))


def add(archive: tarfile.TarFile, path: Path, name: str, copy: Path) -> None:
    """Add a file, directory or link to an archive; skip files of other types."""
    if any(name.endswith(suffix) and is_database(Path(str(path).removesuffix(suffix))) for suffix in SQLITE_COMPANIONS):
        return
    if is_database(path):
        copy_database(path, copy)
        path = copy
    member = archive.gettarinfo(path, name)
    if member is None or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return
    if not member.isreg():
        archive.addfile(member)
        return
    with os.fdopen(os.open(path, READ), "rb") as file:
        archive.addfile(member, file)


def is_database(path: Path) -> bool:
    """Return whether a path is a database of SQLite."""
    with contextlib.suppress(OSError), os.fdopen(os.open(path, READ), "rb") as file:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(SQLITE)) == SQLITE
    return False


def copy_database(path: Path, copy: Path) -> None:
    """Copy a database consistently while the app uses it."""
    copy.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    copy.chmod(stat.S_IMODE(path.lstat().st_mode))


def prepare(shared: Path, paths: list[str]) -> None:
    """Remove what an interrupted restore has left; print the paths that contain data."""
    with work_directory(shared / RESTORING):
        pass
    for path in paths:
        here = shared / path
        with contextlib.suppress(FileNotFoundError):
            if any(here.iterdir()) if here.is_dir() else here.stat().st_size:
                sys.stdout.write(f"{path}\n")


def replace(shared: Path, paths: list[str], served: list[str], acls: dict[str, str]) -> None:
    """Replace the paths by those that were unpacked in the work directory; print the replaced ones."""
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        if os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            moved.append((source, target))

    with work_directory(shared / RESTORING, RESTORED) as work:
        try:
            for path in paths:
                if not os.path.lexists(work / RESTORED / path):
                    continue
                for suffix in ("", *SQLITE_COMPANIONS):  # the log of the old database must not be applied to the new one
                    move(shared / f"{path}{suffix}", work / f"replaced/{path}{suffix}")
                move(work / RESTORED / path, shared / path)
                sys.stdout.write(f"{path}\n")
            grant(shared, [path for path in served if (shared / path).is_dir()], acls)
        except BaseException:
            for source, target in reversed(moved):
                target.rename(source)
            raise


@contextlib.contextmanager
def work_directory(work: Path, *keep: str) -> Iterator[Path]:
    """Create a work directory; remove what an interrupted run has left in it, except ``keep``, and finally all of it."""
    work.mkdir(mode=0o700, exist_ok=True)
    try:
        for path in work.iterdir():
            if path.name not in keep:
                remove(path)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a tree."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def fail(error: OSError) -> None:
    """Raise an error of `os.walk`, except for what was removed meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


COMMANDS: dict[str, Callable[..., None]] = {"provide": provide, "back_up": back_up, "prepare": prepare, "replace": replace}


def main(command: str, directory: str, options: str) -> None:
    """Run a command, or exit with a message."""
    os.umask(UMASK)
    try:
        COMMANDS[command](Path(directory), **json.loads(options))
    except PermissionError as error:
        raise SystemExit(f"{error}; all files in {directory} must belong to its owner: chown them") from None
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
