"""The two Flask apps, started standalone as in their READMEs: ``python -m rest_api``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support.remote import eventually
from tests.support.servers import free_port

FILES = Path(__file__).parents[2] / "files"

Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts an app from its directory, or a copy of it, and returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str, directory: Path | None = None, **environment: str) -> str:
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, "-B", "-m", name, f"--port={port}", *options],
                cwd=directory or FILES / name,
                env=os.environ | environment,
                start_new_session=True,
            )
            stack.callback(process.wait, 30)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
            return f"http://127.0.0.1:{port}"

        yield start


def page(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def test_reporting_app_shows_the_runs_of_the_rest_api(start: Start) -> None:
    api = start("rest_api")
    reports = start("reporting_app", REST_API_URL=f"{api}/api/")
    assert "160708_E00306" in eventually(lambda: page(f"{api}/api/runs"))
    assert "160708_E00306" in eventually(lambda: page(f"{reports}/"))


@pytest.mark.parametrize(
    ("name", "path", "old", "new", "shown"),
    [
        ("rest_api", "/api/runs/new", 'id = "160701_E00306"', 'id = "new"', '"new"'),
        ("reporting_app", "/", "Sequencing runs", "Changed runs", "<title>Changed runs</title>"),
    ],
)
def test_hot_reload_serves_changed_settings(
    start: Start, tmp_path: Path, name: str, path: str, old: str, new: str, shown: str
) -> None:
    copy = shutil.copytree(FILES / name, tmp_path / name)
    url = start(name, "--debug", directory=copy, REST_API_URL=f"{start('rest_api')}/api/")
    assert eventually(lambda: page(f"{url}{'/api' if name == 'rest_api' else ''}/healthz"))
    config = copy / name / "config.toml"
    changed = config.read_text().replace(old, new)

    def reloaded() -> bool:
        config.write_text(changed)  # repeatedly: the reloader compares with the state at its first check
        return shown in page(f"{url}{path}")

    eventually(reloaded)
