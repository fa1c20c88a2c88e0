"""The features in docs/seeds.md have existing files and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: Cells of each row: feature, implementation, tests.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/seeds.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| feature ")
]


@pytest.mark.parametrize(("feature", "implementation", "verification"), ROWS, ids=[row[0] for row in ROWS])
def test_files_and_tests_of_a_feature_exist(feature: str, implementation: str, verification: str) -> None:
    assert feature
    if implementation.startswith("not yet"):
        assert not verification
        return
    files, tests = (re.findall(r"`([^`]+)`", cell) for cell in (implementation, verification))
    assert files
    assert tests
    assert [file for file in files if not (ROOT / file).exists()] == []
    for test in tests:
        file, _, name = test.partition("::")
        found = re.search(rf"def {name}\(", (ROOT / file).read_text())
        assert name, f"{test}: must name a test"
        assert found, test


def test_the_page_has_all_five_documents() -> None:
    assert len(re.findall("^## ", (ROOT / "docs/seeds.md").read_text(), re.MULTILINE)) == 5
