from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.failures import MAX_ERROR_LINES, MAX_LINES, failures

TESTS = """
import pytest

def connect():
    raise OSError("no host")

@pytest.fixture
def broken():
    connect()

def test_setup(broken):
    pass

@pytest.mark.parametrize("name", ["a b"])
def test_text(name):
    assert name == "first line of the error" + "\\n".join(map(str, range(40)))

def test_passes():
    pass
"""
TABLE = """\
molecule-edge       12:03  failed
lint                 2:50  failed
unit                 0:31  passed
total               12:10
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the output of `make test` with failed tests in a scenario, and a failed linter."""
    file = tmp_path_factory.mktemp("failed") / "test_edge.py"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--quiet", "-ra", "-p", "no:cacheprovider", "--color=yes", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stdout
    lint = "".join(f"lint: line {number}\n" for number in range(50))
    return (
        "".join(f"molecule-edge: {line}\n" for line in done.stdout.splitlines()) + f"{lint}molecule-edge: Removed web1\n{TABLE}"
    )


def test_failed_tests_are_listed_before_the_first_lines_of_their_errors(log: str) -> None:
    found = list(failures(log.splitlines()))
    setup = ["ERROR test_edge.py::test_setup", "E       OSError: no host"]
    assert found[0] == "ERROR test_edge.py::test_setup - OSError: no host"
    assert found[1].startswith("FAILED test_edge.py::test_text[a b] - AssertionError: assert 'a b' == 'first l")
    assert found[2:6] == ["FAILED lint", *setup, "FAILED test_edge.py::test_text[a b]"]
    end = found.index("the end of lint:")
    assert len(found[6:end]) == MAX_ERROR_LINES
    assert all(line.startswith("E  ") for line in found[6:end])


def test_end_of_a_part_without_failed_tests_is_shown(log: str) -> None:
    assert list(failures(log.splitlines()))[-MAX_ERROR_LINES:] == [f"lint: line {number}"[6:] for number in range(40, 50)]


def test_list_is_short_whatever_failed(log: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(log.replace("molecule-edge", f"molecule-{letter}") for letter in "abcdefgh"))
    command = [sys.executable, "-m", "tools.failures", str(file)]
    shown = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True, timeout=60).stdout
    assert len(shown.splitlines()) == MAX_LINES
    assert shown.count("FAILED test_edge.py::test_text[a b] - ") == 8
