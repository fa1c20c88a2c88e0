"""The collection as others get it: built as one file, and installed where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.remote import PLAIN, ROOT


def tracked() -> list[str]:
    """Return the files and links that git knows of in the clone."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def build(directory: Path) -> Path:
    """Return the artefact of a clone without anybody's leftovers. The clone is gone when it is there."""
    clone = directory / "clone"
    for name in tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    run(clone, "ansible-galaxy", "collection", "build", "--output-path", str(directory))
    shutil.rmtree(clone)
    [artefact] = directory.glob("funnel-tornado-*.tar.gz")
    return artefact


def install(artefact: Path, home: Path) -> None:
    """Install the artefact for a user who has nothing else, and whose home directory that is."""
    home.mkdir()
    collections = str(home / ".ansible/collections")
    run(home, "ansible-galaxy", "collection", "install", str(artefact), "-p", collections, "--offline", "--no-deps", home=home)


def run(directory: Path, *command: str, home: Path | None = None, status: int = 0) -> str:
    """Run a command with nothing of this clone in its environment, expect its exit status, and return all that it said."""
    away = ("ANSIBLE_", "MOLECULE_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(away)}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment | PLAIN | {"HOME": str(home or directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == status, done.stdout
    return done.stdout
