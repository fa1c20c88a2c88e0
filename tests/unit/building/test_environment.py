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


def test_without_dependencies_there_are_none(tmp_path: Path) -> None:
    assert requirements_from_files(tmp_path).text == ""
    assert requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\n")).text == ""


def test_a_lock_comes_before_requirements(tmp_path: Path) -> None:
    lock = (
        "[[packages]]\nname = 'tornado'\nversion = '6.6'\nwheels = [{url = 'https://a.test/t.whl', hashes = {sha256 = 'aa'}}]\n"
    )
    found = requirements_from_files(write(tmp_path, pylock=lock, requirements="tornado\n"))
    assert (found.origin, found.locked, found.text) == ("pylock.toml", True, "tornado==6.6 --hash=sha256:aa\n")


def test_requirements_come_before_a_project(tmp_path: Path) -> None:
    found = requirements_from_files(write(tmp_path, requirements="tornado\n", project="[project]\ndependencies = ['flask']\n"))
    assert (found.origin, found.locked, found.text) == ("requirements.txt", False, "tornado")


def test_dependencies_that_are_locked_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `uv lock` and add"):
        requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\ndependencies = ['flask']\n"))


def test_the_files_that_requirements_include_belong_to_them(tmp_path: Path) -> None:
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
def test_what_is_part_of_the_source_is_known(tmp_path: Path, line: str, *, local: bool) -> None:
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
def test_a_lock_is_a_list_of_requirements_for_the_hosts_own_index(package: dict[str, Any], line: str) -> None:
    assert requirements_from_pylock({"packages": [{"name": "tornado", **package}]}) == f"{line}\n"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ({"directory": {"path": "."}}, "tornado is of a directory or a file beside it"),
        ({"version": "6.6", "wheels": [WHEEL], "marker": "'dev' in dependency_groups"}, "tornado is of a group or an extra"),
    ],
)
def test_what_no_line_can_name_is_refused(package: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requirements_from_pylock({"packages": [{"name": "tornado", **package}]})


def test_what_is_built_in_an_environment_cannot_lead_its_mark_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for made in ("nothing", "link"):
        (tmp_path / made).mkdir()
    (tmp_path / "link" / COMPLETE).symlink_to(outside)
    assert [_is_complete(tmp_path / made) for made in ("missing", "nothing", "link")] == [False, False, False]
    for made in ("nothing", "link"):
        _mark_complete(tmp_path / made)
        assert _is_complete(tmp_path / made)
    assert not outside.exists()


def developed(directory: Path) -> App:
    return load({"shop": {"source": {"directory": str(directory)}, "run": {"app": "shop:app"}, "debug": True}})["shop"]


def test_a_directory_that_is_run_in_place_is_known_by_what_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    (tmp_path / "more.txt").write_text("tornado==6.6.1\n")
    found = [directory_revision(developed(tmp_path), tmp_path)]
    (tmp_path / "shop.py").write_text("app = None\n")
    assert directory_revision(developed(tmp_path), tmp_path) == found[0], "its code is not a part of the release"
    for name, text in (("more.txt", "tornado==6.5\n"), ("uv.lock", "a"), ("pylock.toml", "b")):
        (tmp_path / name).write_text(text)
        found.append(directory_revision(developed(tmp_path), tmp_path))
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-r requirements.txt\n", "or one includes itself"),
        ("-r none.txt\n", "No such file"),
        ("-r /dev/zero\n", "-r /dev/zero: the file lies outside of the source"),
        ("-r/dev/zero\n", "-r/dev/zero: the file lies outside of the source"),
        ("--requirement=a/../../zero\n", "outside of the source"),
        ("-c ../zero\n", "outside of the source"),
        ("-r pipe\n", "pipe is no regular file"),
        ("-r link\n", "link is no regular file"),
    ],
)
def test_requirements_that_cannot_be_read_are_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuildError, match=rf"tornado_apps\.shop\.source\.directory: .*{expected}"):
        directory_revision(developed(tmp_path), tmp_path)


def test_requirements_that_include_one_another_many_times_are_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r r0\n")
    for level in range(40):
        (tmp_path / f"r{level}").write_text(f"-r r{level + 1}\n" * 2)
    (tmp_path / "r40").touch()
    with pytest.raises(ValueError, match="include more than 50 files"):
        requirement_lines(tmp_path)


def test_an_environment_links_to_a_python_of_roots_alone() -> None:
    python = Path("/usr/bin/python3")
    allowed = ["/usr/bin/python3.11", "/usr/bin/python3", "/opt/python/cpython-3.12/bin/python3.12"]
    assert [_is_interpreter(Path(path), python) for path in allowed] == [True] * 3
    refused = ["/usr/bin/sh", "/srv/shop/shared/python3", "/usr/local/bin/python3"]
    assert [_is_interpreter(Path(path), python) for path in refused] == [False] * 3


def test_a_directory_that_the_host_does_not_have_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(BuildError, match="directory: this host has no directory /"):
        directory_revision(developed(missing), missing)
