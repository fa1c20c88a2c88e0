from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import (
    COMPLETE,
    _is_complete,
    _is_interpreter,
    _mark_complete,
    directory_revision,
    requirement_lines,
    requirements_from_files,
    requirements_from_pylock,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

WHEEL = {"url": "https://a.test/tornado.whl", "hashes": {"sha256": "aa"}}


def write(directory: Path, **files: str) -> Path:
    names = {"requirements": "requirements.txt", "pylock": "pylock.toml", "project": "pyproject.toml"}
    for name, text in files.items():
        path = directory / names.get(name, name.replace("__", "/"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return directory


def test_sources_without_dependency_files_have_no_requirements(tmp_path: Path) -> None:
    assert requirements_from_files(tmp_path).text == ""
    assert requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\n")).text == ""


def test_pylock_takes_precedence_over_requirements(tmp_path: Path) -> None:
    lock = (
        "[[packages]]\nname = 'tornado'\nversion = '6.6'\nwheels = [{url = 'https://a.test/t.whl', hashes = {sha256 = 'aa'}}]\n"
    )
    found = requirements_from_files(write(tmp_path, pylock=lock, requirements="tornado\n"))
    assert (found.origin, found.locked, found.text) == ("pylock.toml", True, "tornado==6.6 --hash=sha256:aa\n")


def test_requirements_take_precedence_over_pyproject(tmp_path: Path) -> None:
    found = requirements_from_files(write(tmp_path, requirements="tornado\n", project="[project]\ndependencies = ['flask']\n"))
    assert (found.origin, found.locked, found.text) == ("requirements.txt", False, "tornado")


def test_unpinned_dependencies_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `uv lock` and add"):
        requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\ndependencies = ['flask']\n"))


def test_included_requirements_are_inlined(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        requirements="# the app's\n-r requirements/base.txt\ntornado==6.6 \\\n  --hash=sha256:aa  # pinned\n",
        requirements__base="",
    )
    (source / "requirements/base.txt").write_text("flask\n")
    assert requirement_lines(source) == [
        "-r requirements/base.txt",
        "flask",
        "tornado==6.6 --hash=sha256:aa",
    ]


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("tornado", False),
        ("lib", False),
        ("-r base.txt", False),
        ("shop @ https://a.test/lib", False),
        ("./lib", True),
        ("./lib[extra]", True),
        ("-e .", True),
        ("--find-links=./lib", True),
        ("lib @ file:./lib", True),
    ],
)
def test_local_requirements_are_detected(tmp_path: Path, line: str, *, local: bool) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "base.txt").touch()
    assert requirements_from_files(write(tmp_path, requirements=f"{line}\n")).local is local


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ({"version": "6.6", "wheels": [WHEEL]}, "tornado==6.6 --hash=sha256:aa"),
        ({"version": "6.6", "sdist": WHEEL, "marker": "os_name == 'nt'"}, "tornado==6.6 ; os_name == 'nt' --hash=sha256:aa"),
        ({"archive": WHEEL}, "tornado @ https://a.test/tornado.whl --hash=sha256:aa"),
        ({"vcs": {"type": "git", "url": "https://a.test/t", "commit-id": "c0"}}, "tornado @ git+https://a.test/t@c0"),
    ],
)
def test_pylock_packages_become_requirements(package: dict[str, Any], line: str) -> None:
    assert requirements_from_pylock({"packages": [{"name": "tornado", **package}]}) == f"{line}\n"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ({"directory": {"path": "."}}, "tornado is a local directory or file"),
        (
            {"version": "6.6", "wheels": [WHEEL], "marker": "'dev' in dependency_groups"},
            "tornado belongs to a dependency group or an extra",
        ),
    ],
)
def test_unsupported_pylock_packages_are_rejected(package: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requirements_from_pylock({"packages": [{"name": "tornado", **package}]})


def test_complete_marker_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("empty", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / COMPLETE).symlink_to(outside)
    assert [_is_complete(tmp_path / name) for name in ("missing", "empty", "link")] == [False, False, False]
    for name in ("empty", "link"):
        _mark_complete(tmp_path / name)
        assert _is_complete(tmp_path / name)
    assert not outside.exists()


def development_app(directory: Path) -> App:
    return load({"shop": {"source": {"directory": str(directory)}, "run": {"app": "shop:app"}, "debug": True}})["shop"]


def test_directory_revision_covers_only_the_dependencies(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    (tmp_path / "more.txt").write_text("tornado==6.6.1\n")
    found = [directory_revision(development_app(tmp_path), tmp_path)]
    (tmp_path / "shop.py").write_text("app = None\n")
    assert directory_revision(development_app(tmp_path), tmp_path) == found[0], "a release does not contain the code"
    for name, text in (("more.txt", "tornado==6.5\n"), ("uv.lock", "a"), ("pylock.toml", "b")):
        (tmp_path / name).write_text(text)
        found.append(directory_revision(development_app(tmp_path), tmp_path))
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-r requirements.txt\n", "or a file includes itself"),
        ("-r none.txt\n", "No such file"),
        ("-r /dev/zero\n", "-r /dev/zero: the file is outside the source"),
        ("-r/dev/zero\n", "-r/dev/zero: the file is outside the source"),
        ("--requirement=a/../../zero\n", "outside the source"),
        ("-c ../zero\n", "outside the source"),
        ("-r pipe\n", "pipe is not a regular file"),
        ("-r link\n", "link is not a regular file"),
    ],
)
def test_unreadable_requirements_are_reported(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuildError, match=rf"tornado_apps\.shop\.source\.directory: .*{expected}"):
        directory_revision(development_app(tmp_path), tmp_path)


def test_excessive_includes_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r r0\n")
    for level in range(40):
        (tmp_path / f"r{level}").write_text(f"-r r{level + 1}\n" * 2)
    (tmp_path / "r40").touch()
    with pytest.raises(ValueError, match="includes more than 50 files"):
        requirement_lines(tmp_path)


def test_only_interpreters_owned_by_root_are_linked() -> None:
    python = Path("/usr/bin/python3")
    allowed = ["/usr/bin/python3.11", "/usr/bin/python3", "/opt/python/cpython-3.12/bin/python3.12"]
    assert [_is_interpreter(Path(path), python) for path in allowed] == [True] * 3
    refused = ["/usr/bin/sh", "/srv/shop/shared/python3", "/usr/local/bin/python3"]
    assert [_is_interpreter(Path(path), python) for path in refused] == [False] * 3


def test_missing_source_directories_are_reported(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(BuildError, match=r"directory: /\S+ is not a directory on this host"):
        directory_revision(development_app(missing), missing)
