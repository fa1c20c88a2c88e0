"""External checks of the collection as users get it: ``make judges``.

They run on the built artifact in ``.cache/judges``, without access to Galaxy; ansible-test installs its tools with pip. `make
lint` checks the files that are only in the clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from tests.support.artefact import build
from tests.support.remote import ROOT

#: Files that persist between runs: the tools, and the environments of ansible-test, below a home directory of its own.
CACHE = ROOT / ".cache/judges"
PROGRAMS = CACHE / "venv/bin"
HOME = CACHE / "home"

#: Where the artifact is unpacked: ansible-test requires a path with this ending.
TREE = CACHE / "ansible_collections/funnel/tornado"

#: ansible-test installs pip with this file, which it would otherwise download; the name has the version.
GET_PIP = HOME / ".ansible/test/cache/get_pip_24_2.py"


def prepare() -> Path:
    """Build the artifact of the clone, unpack it, and return its path."""
    shutil.rmtree(TREE.parents[1], ignore_errors=True)
    for old in CACHE.glob("*.tar.gz"):
        old.unlink()
    artifact = build(CACHE)
    with tarfile.open(artifact) as archive:
        archive.extractall(TREE)  # packed by this clone
    # ansible-test checks tracked and untracked files of git; the repository of the clone ignores .cache.
    subprocess.run(["git", "init", "--quiet", TREE], check=True)
    GET_PIP.parent.mkdir(parents=True, exist_ok=True)
    GET_PIP.write_text("import ensurepip\n\nensurepip.bootstrap()\n")
    settings = HOME / ".config"  # for example of pip
    settings.unlink(missing_ok=True)
    settings.symlink_to(Path.home() / ".config")
    return artifact


def unit_tests() -> list[str]:
    """Copy the tests into the tree, and return those of shipped files; other tests require the clone."""
    for name in ("tests", "tools"):
        shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shipped = {f"test_{path.stem}.py" for path in TREE.glob("plugins/**/*.py")}
    return sorted(str(path.relative_to(TREE)) for path in TREE.glob("tests/unit/**/*.py") if path.name in shipped)


def judge(name: str, *command: str | Path, directory: Path = TREE) -> bool:
    """Run a check, print its result and duration, and its output if it failed; return whether it passed."""
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith(("ANSIBLE_", "PYTHON"))}
    environment |= {"HOME": str(HOME), "PATH": f"{PROGRAMS}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment["GALAXY_IMPORTER_RUN_ANSIBLE_LINT"] = "false"  # `make lint` does
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    passed = done.returncode == 0 and "All targets skipped" not in done.stdout
    sys.stdout.write(
        f"{name}: {'passed' if passed else 'FAILED'}, {time.monotonic() - started:.0f} s\n{'' if passed else done.stdout}"
    )
    sys.stdout.flush()
    return passed


def main() -> int:
    """Run all checks; return 0 if they pass."""
    artifact = prepare()
    page = CACHE / "CHANGELOG.md"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    changelog = "antsibull-changelog"
    results = [
        judge("changelogs/fragments", changelog, "lint", directory=ROOT),
        judge("changelogs/changelog.yaml", changelog, "lint-changelog-yaml", "changelogs/changelog.yaml", directory=ROOT),
        judge("CHANGELOG.md can be generated", changelog, "generate", "--output", page, directory=ROOT),
        judge("CHANGELOG.md is up to date", "diff", page, "CHANGELOG.md", directory=ROOT),
        judge("galaxy-importer", PROGRAMS / "python", "-m", "galaxy_importer.main", artifact, directory=CACHE),
        judge("antsibull-docs", "antsibull-docs", "lint-collection-docs", "--plugin-docs", "."),
        judge("ansible-test sanity", "ansible-test", "sanity", "--python", python),
        judge("ansible-test units", "ansible-test", "units", "--python", python, *unit_tests()),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
