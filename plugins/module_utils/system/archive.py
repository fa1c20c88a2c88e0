"""Download, verification and unpacking of archives on a host."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system import unpacking
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import Builder, BuildError

#: Timeout in seconds of each read from the server.
READ_SECONDS = 60

_CHUNK = 1 << 20

#: Maximum size of an archive.
MAX_BYTES = 4 << 30


def fetch(url: str, file: Path, checksum: str, key: str) -> None:
    """Download ``url`` to ``file`` and verify its ``checksum`` (``sha256:...``).

    Proxy and certificates are taken from the environment of this process.

    :arg key: path of the source in the inventory, for messages.
    :raises BuildError: if it cannot be downloaded or the checksum differs.
    """
    # Imported here, because that takes a tenth of a second, and most runs download nothing.
    from http.client import HTTPException

    from ansible.module_utils import urls

    digest = hashlib.sha256()
    file.touch(mode=0o600)
    try:
        options = {"timeout": READ_SECONDS, "ca_path": os.environ.get("SSL_CERT_FILE"), "decompress": False}
        with urls.open_url(url, **options) as response, file.open("wb") as target:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
                if target.tell() > MAX_BYTES:
                    raise BuildError(f"{key}.archive: {url} has more than {MAX_BYTES >> 20} MiB")
    except (OSError, urls.ConnectionError, HTTPException) as error:
        raise BuildError(f"{key}.archive: {url} cannot be fetched from this host: {error}") from error
    if f"sha256:{digest.hexdigest()}" != checksum:
        raise BuildError(f"{key}.checksum: {url} hashes to sha256:{digest.hexdigest()}; expected {checksum}")


def unpack(builder: Builder, stream: int, directory: Path, key: str, *, subdirectory: str = ".", flatten: bool = False) -> None:
    """Unpack a tar or zip file as the user that builds the app.

    :arg stream: its file descriptor, which for a tar file may be a pipe.
    :arg key: path of the source in the inventory, for messages.
    :arg subdirectory: target below ``directory``, which the user owns.
    :arg flatten: strip the top directory of the archive if it is the only one.
    :raises BuildError: if :mod:`unpacking` refuses it.
    """
    arguments = [str(directory), subdirectory, *(["flatten"] if flatten else [])]
    _run(builder, directory, arguments, f"{key}: cannot be unpacked", stdin=stream)


def keep_subdirectory(builder: Builder, directory: Path, subdirectory: str, key: str) -> None:
    """Replace the contents of ``directory`` with those of one of its subdirectories, as the user that builds the app.

    :arg key: path of the key in the inventory, for messages.
    :raises BuildError: if the source has no such directory, or has a link in its place.
    """
    _run(builder, directory, [str(directory), subdirectory, "keep"], key)


def _run(builder: Builder, directory: Path, arguments: list[str], failure: str, stdin: int | None = None) -> None:
    program = [sys.executable, "-IXutf8", "-c", inspect.getsource(unpacking), *arguments]
    builder.run(program, failure, directory=directory, environment={}, stdin=stdin)
