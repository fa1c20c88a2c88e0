"""Fixtures of the edge scenario."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.acme import fetch_roots
from tests.support.remote import address, hosts


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the root certificates of both ACME servers."""
    return fetch_roots(address(hosts("acme")["acme"]), tmp_path_factory.mktemp("ca"), (15000, 15001))
