"""What docs/seeds.md says is done and proven."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: Cells of each row: what a document describes, what does it, what proves it.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/seeds.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| it describes")
]


@pytest.mark.parametrize(("described", "done_by", "proven_by"), ROWS, ids=[row[0] for row in ROWS])
def test_what_does_it_and_what_proves_it_are_there(described: str, done_by: str, proven_by: str) -> None:
    assert described
    if done_by.startswith("not yet"):
        assert not proven_by
        return
    files, tests = (re.findall(r"`([^`]+)`", cell) for cell in (done_by, proven_by))
    assert files
    assert tests
    assert [file for file in files if not (ROOT / file).exists()] == []
    for test in tests:
        file, _, name = test.partition("::")
        found = re.search(rf"def {name}\(", (ROOT / file).read_text())
        assert name, f"{test}: which one of its tests?"
        assert found, test


def test_all_five_documents_are_there() -> None:
    assert len(re.findall("^## ", (ROOT / "docs/seeds.md").read_text(), re.MULTILINE)) == 5
