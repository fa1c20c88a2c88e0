"""Builds the collection as an archive and installs it in an empty home directory, as users get it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.remote import PLAIN_ENV, ROOT


def tracked_files() -> list[str]:
    """Return the files and links of the clone that git tracks."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def build(directory: Path) -> Path:
    """Build the collection from a copy of the tracked_files files and return the archive."""
    clone = directory / "clone"
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    run(clone, "ansible-galaxy", "collection", "build", "--output-path", str(directory))
    shutil.rmtree(clone)
    [artefact] = directory.glob("funnel-tornado-*.tar.gz")
    return artefact


def install(artefact: Path, home: Path) -> None:
    """Install the archive for a user with the empty home directory ``home``."""
    home.mkdir()
    collections = str(home / ".ansible/collections")
    run(home, "ansible-galaxy", "collection", "install", str(artefact), "-p", collections, "--offline", "--no-deps", home=home)


def run(directory: Path, *command: str, home: Path | None = None, status: int = 0) -> str:
    """Run a command in an environment without this clone, expect its exit status, and return its output."""
    excluded = ("ANSIBLE_", "MOLECULE_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(excluded)}
    completed = subprocess.run(
        command,
        cwd=directory,
        env=environment | PLAIN_ENV | {"HOME": str(home or directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert completed.returncode == status, completed.stdout
    return completed.stdout
