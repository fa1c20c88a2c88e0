"""Archives on a host: fetched, told by what they hash to, and unpacked."""

from __future__ import annotations

import calendar
import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.home import BUILD_SECONDS, BuildError

#: How each zip file begins, an empty one included. Looked at instead of its end, as any file may end with a zip file.
ZIP_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")

#: Seconds of silence after which a server counts as dead.
SILENCE = 60

_CHUNK = 1 << 20

#: What reading a zip file can raise: RuntimeError if it is encrypted, the last two if a member is in the way of another.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, FileExistsError, NotADirectoryError)


def fetch(url: str, file: Path, checksum: str, key: str) -> None:
    """Write what ``url`` gives to ``file``, whatever its size, and see that it hashes to ``checksum`` (``sha256:...``).

    Proxy and certificates are those of this process's environment.

    :arg key: the source's place in the inventory, for messages.
    :raises BuildError: when it cannot be fetched or is something else.
    """
    # Here, because importing them takes a tenth of a second, which every run would pay that has nothing to fetch.
    from http.client import HTTPException

    from ansible.module_utils import urls

    digest = hashlib.sha256()
    try:
        certificates = os.environ.get("SSL_CERT_FILE")
        with urls.open_url(url, timeout=SILENCE, ca_path=certificates, decompress=False) as answer, file.open("wb") as target:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
    except (OSError, urls.ConnectionError, HTTPException) as error:
        raise BuildError(f"{key}.archive: {url} cannot be fetched from this host: {error}") from error
    if f"sha256:{digest.hexdigest()}" != checksum:
        raise BuildError(f"{key}.checksum: {url} hashes to sha256:{digest.hexdigest()}; {checksum} is wanted")


def unpack(file: Path, directory: Path, key: str) -> None:
    """Make ``directory`` of a tar or zip file; if all of it is in one directory, that is the one.

    :arg key: the source's place in the inventory, for messages.
    :raises BuildError: when it is neither, is damaged, or a member would land outside.
    """
    inside = directory.with_name(f".{directory.name}")
    inside.mkdir()
    with file.open("rb") as opened:
        zipped = opened.read(4) in ZIP_BEGINNINGS
    if zipped:
        unzip(file, inside, key)
    else:
        untar(file, inside, key)
    found = list(inside.iterdir())
    alone = len(found) == 1 and found[0].is_dir() and not found[0].is_symlink()
    (found[0] if alone else inside).rename(directory)
    if alone:
        inside.rmdir()


def untar(file: Path, directory: Path, key: str) -> None:
    """Unpack a tar file, compressed in any way that the host's tar knows, into ``directory``.

    tar itself refuses paths that leave the directory; Python's tarfile learnt that after Debian 12's 3.11.2 only.

    :raises BuildError: in tar's words.
    """
    command = ["tar", "--extract", "--no-same-owner", "--file", str(file), "--directory", str(directory)]
    try:
        run(command, timeout=BUILD_SECONDS)
    except CommandError as error:
        raise BuildError(f"{key}: cannot be unpacked: {error}") from error


def unzip(file: Path, directory: Path, key: str) -> None:
    """Unpack a zip file into ``directory``, with its times, execute bits and links.

    Links are made last: nothing is written through one. Times count as UTC: the format names no zone, and validators
    for caches (``ETag``, ``Last-Modified``) that are made of them have to be the same on all hosts.

    :raises BuildError: when it is damaged or a member would land outside.
    """
    links: dict[Path, str] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                path = PurePosixPath(member.filename)
                if path.is_absolute() or ".." in path.parts:
                    raise BuildError(f"{key}: {member.filename} would be unpacked outside of the source's directory")
                target = directory / path
                mode = member.external_attr >> 16  # what Unix thinks of it; 0 from elsewhere
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                if stat.S_ISLNK(mode):
                    links[target] = archive.read(member).decode()
                    continue
                with archive.open(member) as content, target.open("wb") as output:
                    shutil.copyfileobj(content, output, _CHUNK)
                target.chmod(0o755 if mode & 0o100 else 0o644)
                os.utime(target, (calendar.timegm(member.date_time),) * 2)
        for link, destination in links.items():
            link.symlink_to(destination)
    except _BAD_ZIP as error:
        raise BuildError(f"{key}: cannot be unpacked: {error}") from error
