"""Archives on a host: fetched, identified by their hash, and unpacked."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system import unpacking
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import Builder, BuildError

#: Seconds of silence after which a server counts as dead.
SILENCE = 60

_CHUNK = 1 << 20

#: Most bytes of an archive.
MAX_BYTES = 4 << 30


def fetch(url: str, file: Path, checksum: str, key: str) -> None:
    """Write what ``url`` gives to ``file``, and see that it hashes to ``checksum`` (``sha256:...``).

    Proxy and certificates are those of this process's environment.

    :arg key: the source's place in the inventory, for messages.
    :raises BuildError: when it cannot be fetched or is something else.
    """
    # Here, because importing them takes a tenth of a second, which every run would pay that has nothing to fetch.
    from http.client import HTTPException

    from ansible.module_utils import urls

    digest = hashlib.sha256()
    file.touch(mode=0o600)
    try:
        certificates = os.environ.get("SSL_CERT_FILE")
        with urls.open_url(url, timeout=SILENCE, ca_path=certificates, decompress=False) as answer, file.open("wb") as target:
            while chunk := answer.read(_CHUNK):
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

    :arg stream: a file descriptor of it; that of a tar file may be a pipe.
    :arg key: the source's place in the inventory, for messages.
    :arg subdirectory: where it belongs in ``directory``, which is that user's.
    :arg flatten: leave out a single directory that all of it is in.
    :raises BuildError: when it is refused, see :mod:`unpacking`.
    """
    program = [
        sys.executable,
        "-I",
        "-c",
        inspect.getsource(unpacking),
        str(directory),
        subdirectory,
        *(["flatten"] if flatten else []),
    ]
    builder.run(program, f"{key}: cannot be unpacked", directory=directory, environment={}, stdin=stream)
