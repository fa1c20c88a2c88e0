from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.requirements import (
    file_states,
    git_references,
    is_package,
    list_paths,
    requirement_lines,
    requirements_from_files,
)


def write(directory: Path, **files: str) -> Path:
    names = {"requirements": "requirements.txt", "pylock": "pylock.toml", "project": "pyproject.toml"}
    for name, text in files.items():
        path = directory / names.get(name, name.replace("__", "/"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return directory


def test_sources_without_dependency_files_have_no_requirements(tmp_path: Path) -> None:
    assert requirements_from_files(tmp_path).entries == ""
    assert requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\n")).entries == ""


def test_pylock_takes_precedence_over_requirements(tmp_path: Path) -> None:
    lock = (
        "[[packages]]\nname = 'tornado'\nversion = '6.6'\nwheels = [{url = 'https://a.test/t.whl', hashes = {sha256 = 'aa'}}]\n"
    )
    found = requirements_from_files(write(tmp_path, pylock=lock, requirements="tornado\n"))
    assert (found.origin, found.locked, found.entries) == ("pylock.toml", True, "tornado==6.6 --hash=sha256:aa\n")


def test_requirements_take_precedence_over_pyproject(tmp_path: Path) -> None:
    found = requirements_from_files(write(tmp_path, requirements="tornado\n", project="[project]\ndependencies = ['flask']\n"))
    assert (found.origin, found.locked, found.entries) == ("requirements.txt", False, "tornado")


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


@pytest.mark.parametrize("option", ["-c ", "-c", "--constraint ", "--constraint="])
def test_included_constraints_are_inlined(tmp_path: Path, option: str) -> None:
    write(tmp_path, requirements=f"flask\n{option}limits.txt\n")
    for limit in ("flask<3", "flask<4"):
        (tmp_path / "limits.txt").write_text(f"{limit}  # until the next release\n")
        assert requirements_from_files(tmp_path).entries.splitlines() == ["flask", f"{option}limits.txt", limit]


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
        ("--find-links lib", True),
        ("-f lib", True),
        ("-e lib", True),
        ("-e git+https://a.test/lib#egg=lib", False),
        ("lib-1.0-py3-none-any.whl", True),
        ("lib-2.0-py3-none-any.whl", False),
        ("lib @ file:./lib", True),
    ],
)
def test_local_requirements_are_detected(tmp_path: Path, line: str, *, local: bool) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "base.txt").touch()
    (tmp_path / "lib-1.0-py3-none-any.whl").touch()
    assert bool(list_paths(tmp_path, [line])) is local


def test_local_requirements_are_also_relative_to_the_file_with_them(tmp_path: Path) -> None:
    wheels = tmp_path / "requirements/wheels"
    wheels.mkdir(parents=True)
    assert list_paths(tmp_path, ["-r requirements/base.txt", "--find-links wheels"]) == [wheels]


def test_excessive_includes_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r r0\n")
    for level in range(40):
        (tmp_path / f"r{level}").write_text(f"-r r{level + 1}\n" * 2)
    (tmp_path / "r40").touch()
    with pytest.raises(ValueError, match="includes more than 50 files"):
        requirement_lines(tmp_path)


def test_size_of_requirements_is_limited_together(tmp_path: Path) -> None:
    """A commit contains a file that is included again and again only once."""
    (tmp_path / "requirements.txt").write_text("-r more.txt\n" * 40)
    (tmp_path / "more.txt").write_text("# a comment\n" * 100_000)
    with pytest.raises(ValueError, match=r"requirements\.txt and the files that it includes have more than 8 MiB"):
        requirement_lines(tmp_path)


@pytest.mark.parametrize(
    ("files", "origin"),
    [
        ({"poetry.lock": "", "pdm.lock": "", "Pipfile.lock": "{}", "pyproject.toml": "", "setup.py": ""}, "poetry.lock"),
        ({"pdm.lock": "", "Pipfile.lock": "{}", "pyproject.toml": "", "setup.py": ""}, "pdm.lock"),
        ({"Pipfile.lock": "{}", "pyproject.toml": "", "setup.py": ""}, "Pipfile.lock"),
        ({"pyproject.toml": "", "setup.py": ""}, "pyproject.toml"),
        ({"requirements.txt": "", "poetry.lock": ""}, "requirements.txt"),
        ({"setup.py": ""}, "setup.py"),
    ],
)
def test_the_first_file_with_dependencies_is_used(tmp_path: Path, files: dict[str, str], origin: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert requirements_from_files(tmp_path).origin == origin


def test_dependencies_without_a_lock_are_resolved_by_the_build(tmp_path: Path) -> None:
    found = requirements_from_files(write(tmp_path, project="[project]\nname = 'shop'\ndependencies = ['flask>=3']\n"))
    assert (found.origin, found.entries, found.locked, found.package) == ("pyproject.toml", "flask>=3", False, False)


@pytest.mark.parametrize(
    "project", ["[build-system]\n", "[project]\nname = 'a'\ndynamic = ['dependencies']\n[build-system]\n", "[tool.poetry]\n"]
)
def test_dependencies_that_a_build_computes_depend_on_the_revision(tmp_path: Path, project: str) -> None:
    (tmp_path / "setup.py").touch()
    found = requirements_from_files(write(tmp_path, project=project))
    assert (found.local, found.package) == (True, True)


def test_a_pipfile_without_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Pipfile").touch()
    with pytest.raises(ValueError, match=r"run `pipenv lock` and add Pipfile\.lock"):
        requirements_from_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("Pipfile.lock", "[]"), ("pylock.toml", "[[packages]]\n"), ("poetry.lock", "package = [1]\n")]
)
def test_unknown_formats_of_locks_are_reported_by_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} has an unknown format"):
        requirements_from_files(tmp_path)


@pytest.mark.parametrize(
    ("project", "package"),
    [
        ({}, False),
        ({"project": {"name": "shop"}}, False),
        ({"build-system": {}}, True),
        ({"build-system": {}, "tool": {"uv": {"package": False}}}, False),
        ({"build-system": {}, "tool": {"poetry": {"package-mode": False}}}, False),
        ({"build-system": {}, "tool": {"pdm": {"distribution": False}}}, False),
        ({"tool": {"uv": {"package": True}}}, True),
    ],
)
def test_projects_with_a_build_system_are_packages_unless_they_say_otherwise(
    tmp_path: Path, project: dict[str, object], *, package: bool
) -> None:
    assert is_package(tmp_path, project) is package


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lib @ git+https://a.test/lib.git@main", ("https://a.test/lib.git", "main")),
        ("lib @ git+https://a.test/lib.git@feature/x ; python_version > '3'", ("https://a.test/lib.git", "feature/x")),
        ("git+ssh://git@a.test/lib.git#egg=lib", ("ssh://git@a.test/lib.git", "")),
        ("-e git+https://a.test/lib@v1#egg=lib&subdirectory=x", ("https://a.test/lib", "v1")),
        ("lib @ git+file:///srv/lib@main", ("file:///srv/lib", "main")),
    ],
)
def test_git_references_of_requirements_are_found(line: str, expected: tuple[str, str]) -> None:
    assert git_references(["tornado==6.6.1", line, line]) == [expected]


def test_sources_of_uv_are_requirements(tmp_path: Path) -> None:
    project = (
        "[project]\nname = 'shop'\ndependencies = ['lib', 'tool']\n"
        "[tool.uv.sources]\nlib = { git = 'https://a.test/lib', branch = 'main' }\ntool = { path = 'libs/tool' }\n"
    )
    (tmp_path / "libs/tool").mkdir(parents=True)
    lines = requirements_from_files(write(tmp_path, project=project)).entries.splitlines()
    assert git_references(lines) == [("https://a.test/lib", "main")]
    assert lines[-1] == "tool @ ./libs/tool"


def test_the_state_of_a_file_changes_with_it(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    states = []
    for text in ("1", "22"):
        wheel.write_text(text)
        [path] = list_paths(tmp_path / "src", [f"a @ file://{wheel}"] * 2)
        states.append(list(file_states(path)))
    assert states[0] != states[1]
    assert len(list(file_states(tmp_path))) == 2, "a directory has the state of its entries"


def test_paths_and_repositories_of_dependencies_are_limited(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number}.whl").touch()
    with pytest.raises(ValueError, match="more than 100 files"):
        list_paths(tmp_path, [f"./{number}.whl" for number in range(101)])
    with pytest.raises(ValueError, match="more than 50 git repositories"):
        git_references([f"git+https://a.test/{number}" for number in range(51)])
