"""Let others judge the collection, as others get it: ``make judges``.

They are given the built artefact, in ``.cache/judges``, and reach no Galaxy; ansible-test installs tools of its own by pip. What
is in the clone alone is judged by `make lint`.
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

#: What outlives a run: the tools, and the environments that ansible-test makes for itself, below a home directory of its own.
CACHE = ROOT / ".cache/judges"
PROGRAMS = CACHE / "venv/bin"
HOME = CACHE / "home"

#: Where the artefact is unpacked: a path that ends as ansible-test wants it.
TREE = CACHE / "ansible_collections/funnel/tornado"

#: ansible-test installs pip by this file, which it would otherwise download; it is named after the version it wants.
GET_PIP = HOME / ".ansible/test/cache/get_pip_24_2.py"


def prepare() -> Path:
    """Unpack the artefact that the clone makes, and return it."""
    shutil.rmtree(TREE.parents[1], ignore_errors=True)
    for old in CACHE.glob("*.tar.gz"):
        old.unlink()
    artefact = build(CACHE)
    with tarfile.open(artefact) as archive:
        archive.extractall(TREE)  # what the clone itself has packed
    # ansible-test judges the files that git knows or could know; of the clone's repository these are none, as .cache is ignored.
    subprocess.run(["git", "init", "--quiet", TREE], check=True)
    GET_PIP.parent.mkdir(parents=True, exist_ok=True)
    GET_PIP.write_text("import ensurepip\n\nensurepip.bootstrap()\n")
    settings = HOME / ".config"  # pip's, for instance
    settings.unlink(missing_ok=True)
    settings.symlink_to(Path.home() / ".config")
    return artefact


def unit_tests() -> list[str]:
    """Return the tests of what the collection ships, put into the tree. Others are of the clone, which is not there."""
    for name in ("tests", "tools"):
        shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shipped = {f"test_{path.stem}.py" for path in TREE.glob("plugins/**/*.py")}
    return sorted(str(path.relative_to(TREE)) for path in TREE.glob("tests/unit/**/*.py") if path.name in shipped)


def judge(name: str, *command: str | Path, directory: Path = TREE) -> bool:
    """Let one judge it, say how long that took, and return whether all is well; if not, with what the judge has said."""
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith(("ANSIBLE_", "PYTHON"))}
    environment |= {"HOME": str(HOME), "PATH": f"{PROGRAMS}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment["GALAXY_IMPORTER_RUN_ANSIBLE_LINT"] = "false"  # `make lint` does
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    well = done.returncode == 0 and "All targets skipped" not in done.stdout
    sys.stdout.write(f"{name}: {'well' if well else 'FAILED'}, {time.monotonic() - started:.0f} s\n{'' if well else done.stdout}")
    sys.stdout.flush()
    return well


def main() -> int:
    """Return 0 if every judge is content."""
    artefact = prepare()
    page = CACHE / "CHANGELOG.md"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    changelog = "antsibull-changelog"
    verdicts = [
        judge("changelogs/fragments", changelog, "lint", directory=ROOT),
        judge("changelogs/changelog.yaml", changelog, "lint-changelog-yaml", "changelogs/changelog.yaml", directory=ROOT),
        judge("CHANGELOG.md can be made", changelog, "generate", "--output", page, directory=ROOT),
        judge("CHANGELOG.md is what was made", "diff", page, "CHANGELOG.md", directory=ROOT),
        judge("galaxy-importer", PROGRAMS / "python", "-m", "galaxy_importer.main", artefact, directory=CACHE),
        judge("antsibull-docs", "antsibull-docs", "lint-collection-docs", "--plugin-docs", "."),
        judge("ansible-test sanity", "ansible-test", "sanity", "--python", python),
        judge("ansible-test units", "ansible-test", "units", "--python", python, *unit_tests()),
    ]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
