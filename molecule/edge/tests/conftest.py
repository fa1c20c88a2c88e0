"""Fixtures of the edge scenario."""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path

import pytest

from tests.support.remote import address, hosts


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the root certificates of both ACME servers."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    server = address(hosts("acme")["acme"])
    roots = []
    for port in (15000, 15001):
        with urllib.request.urlopen(
            f"https://{server}:{port}/roots/0", timeout=10, context=ssl._create_unverified_context()
        ) as response:
            roots.append(response.read())
    file.write_bytes(b"".join(roots))
    return file
