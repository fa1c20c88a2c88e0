"""Installation of a program from an archive, in a directory named by the hash of the archive."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ansible_collections.funnel.tornado.plugins.module_utils.core import atomic, proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system.archive import fetch
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError
from ansible_collections.funnel.tornado.plugins.module_utils.system.unpacking import ZIP_SIGNATURES

#: Exceptions of reading damaged tar and zip files.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

#: Hexadecimal digits of the archive's hash in the name of a version.
ID_LENGTH = 12


class ProgramError(Exception):
    """The program was not installed; the previous version remains."""


@dataclass(frozen=True)
class Program:
    """The program ``name`` from the archive with ``checksum`` (``sha256:...``), below ``home``; ``link`` points to it."""

    name: str
    checksum: str
    home: Path
    link: Path

    @property
    def path(self) -> Path:
        """Path of the executable, which depends on the archive: the unit of a service thus names the version that it runs."""
        return self.home / self.checksum.removeprefix("sha256:")[:ID_LENGTH] / self.name

    def is_up_to_date(self) -> bool:
        """Return whether it is installed and linked."""
        return self.path.is_file() and self.link.is_symlink() and self.link.readlink() == self.path

    def install(self, archive: Path | None, url: str, key: str) -> None:
        """Install it from the file ``archive`` or from ``url``; remove all other versions except the linked and running ones.

        These are kept for a rollback of a service: if the last upgrade failed, the linked version is not the one that runs.

        :arg key: path of the archive in the inventory, for messages.
        :raises ProgramError: if it cannot be downloaded, is not in the archive, or does not run on this host.
        """
        previous = self.link.readlink() if self.link.is_symlink() else self.path
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not self.path.is_file():
                self._build(archive, url, key)
            atomic.replace_link(self.link, self.path)
            for other in self.home.iterdir():
                if other not in {self.path.parent, previous.parent, *self._running()}:
                    shutil.rmtree(other)
        except (OSError, BuildError, CommandError) as error:
            raise ProgramError(str(error)) from error

    def _running(self) -> Iterator[Path]:
        home = self.home.resolve()  # the kernel reports resolved paths
        for pid in proc.pids():
            with contextlib.suppress(OSError):  # it has exited
                executable = (proc.PROC / str(pid) / "exe").readlink()
                if executable.is_relative_to(home):
                    yield self.home / executable.relative_to(home).parts[0]

    def _build(self, archive: Path | None, url: str, key: str) -> None:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".new", dir=self.home) as directory:
            if archive is None:
                archive = Path(directory) / "archive"
                fetch(url, archive, self.checksum, key)
            new = Path(directory) / "program"
            new.mkdir()
            extract(archive, self.name, new / self.name, f"{key}.archive")
            new.chmod(0o755)
            try:
                run([str(new / self.name), "--version"])
            except CommandError as error:
                raise ProgramError(f"{key}.archive: its {self.name} does not run on this host: {error}") from error
            new.rename(self.path.parent)


def extract(archive: Path, name: str, target: Path, key: str) -> None:
    """Write the member ``name`` of a tar or zip file to ``target``; any other file is the program itself.

    :arg key: path of the archive in the inventory, for messages.
    :raises ProgramError: if the archive is damaged, or does not contain exactly one file of that name.
    """
    with archive.open("rb") as file:
        is_zip = file.read(4) in ZIP_SIGNATURES
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as zip_file:
                members = [info.filename for info in zip_file.infolist()]
                _write(zip_file.open(_find_member(members, name, key)), target)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                files = {info.name: info for info in tar if info.isfile()}
                stream = tar.extractfile(files[_find_member(list(files), name, key)])
                if stream:
                    _write(stream, target)
        else:
            shutil.copyfile(archive, target)
    except _DAMAGED as error:
        raise ProgramError(f"{key}: cannot be unpacked: {error}") from error
    target.chmod(0o755)


def _find_member(members: list[str], name: str, key: str) -> str:
    matches = [member for member in members if PurePosixPath(member).name == name and not member.endswith("/")]
    if len(matches) != 1:
        raise ProgramError(f"{key}: must contain exactly one file {name}; found {', '.join(matches) or 'none'}")
    return matches[0]


def _write(stream: IO[bytes], target: Path) -> None:
    with stream, target.open("wb") as output:
        shutil.copyfileobj(stream, output, 1 << 20)
