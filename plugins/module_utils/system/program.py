"""One program out of an archive, installed under what the archive hashes to."""

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

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system.archive import fetch
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError
from ansible_collections.funnel.tornado.plugins.module_utils.system.unpacking import ZIP_BEGINNINGS

#: What reading a damaged tar or zip file can raise.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

#: Hexadecimal digits of the archive's hash that name a version.
ID_LENGTH = 12


class ProgramError(Exception):
    """The program was not installed; what was there still is."""


@dataclass(frozen=True)
class Program:
    """The program ``name`` of the archive that hashes to ``checksum`` (``sha256:...``), below ``home``.

    ``link`` leads to it, for people.
    """

    name: str
    checksum: str
    home: Path
    link: Path

    @property
    def path(self) -> Path:
        """The executable. Another archive has another path, so a service's unit says which one it runs."""
        return self.home / self.checksum.removeprefix("sha256:")[:ID_LENGTH] / self.name

    def is_up_to_date(self) -> bool:
        """Say whether it is installed and linked."""
        return self.path.is_file() and self.link.is_symlink() and self.link.readlink() == self.path

    def install(self, archive: Path | None, url: str, key: str) -> None:
        """Install it from the file ``archive``, or from ``url``; keep what was linked and what runs, remove all other versions.

        They stay because a service may have to go back to the one before. That is not the one that was linked, if the last
        upgrade failed, but the one that runs.

        :arg key: the archive's place in the inventory, for messages.
        :raises ProgramError: when it cannot be fetched, is not in the archive, or does not run here.
        """
        before = self.link.readlink() if self.link.is_symlink() else self.path
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not self.path.is_file():
                self._build(archive, url, key)
            ready = self.link.with_name(f".{self.link.name}.new")
            ready.unlink(missing_ok=True)
            ready.symlink_to(self.path)
            ready.replace(self.link)
            for other in self.home.iterdir():
                if other not in {self.path.parent, before.parent, *self._running()}:
                    shutil.rmtree(other)
        except (OSError, BuildError, CommandError) as error:
            raise ProgramError(str(error)) from error

    def _running(self) -> Iterator[Path]:
        home = self.home.resolve()  # as the kernel names what a process runs
        for pid in proc.pids():
            with contextlib.suppress(OSError):  # it has ended
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
    """Write the member ``name`` of a tar or zip file to ``target``; a file that is neither is the program itself.

    :arg key: the archive's place in the inventory, for messages.
    :raises ProgramError: when the archive is damaged, or does not have exactly one file of that name.
    """
    with archive.open("rb") as opened:
        zipped = opened.read(4) in ZIP_BEGINNINGS
    try:
        if zipped:
            with zipfile.ZipFile(archive) as zip_file:
                members = [one.filename for one in zip_file.infolist()]
                _write(zip_file.open(_only(members, name, key)), target)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                files = {one.name: one for one in tar if one.isfile()}
                stream = tar.extractfile(files[_only(list(files), name, key)])
                if stream:
                    _write(stream, target)
        else:
            shutil.copyfile(archive, target)
    except _DAMAGED as error:
        raise ProgramError(f"{key}: cannot be unpacked: {error}") from error
    target.chmod(0o755)


def _only(members: list[str], name: str, key: str) -> str:
    found = [member for member in members if PurePosixPath(member).name == name and not member.endswith("/")]
    if len(found) != 1:
        raise ProgramError(f"{key}: must have one file {name}; found {', '.join(found) or 'none'}")
    return found[0]


def _write(stream: IO[bytes], target: Path) -> None:
    with stream, target.open("wb") as output:
        shutil.copyfileobj(stream, output, 1 << 20)
