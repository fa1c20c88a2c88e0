"""The ACME servers of scenarios."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Sequence
from pathlib import Path


def fetch_roots(server: str, directory: Path, ports: Sequence[int] = (15000,)) -> Path:
    """Return a file in ``directory`` with the present root certificates of the ACME servers at an address."""
    file = directory / "roots.pem"
    insecure = ssl._create_unverified_context()
    roots = []
    for port in ports:
        with urllib.request.urlopen(f"https://{server}:{port}/roots/0", timeout=10, context=insecure) as response:
            roots.append(response.read())
    file.write_bytes(b"".join(roots))
    return file
