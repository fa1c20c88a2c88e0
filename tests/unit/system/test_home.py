from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.requirements import requirements_from_files
from ansible_collections.funnel.tornado.plugins.module_utils.system import home


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", f"{'.'.join(['a'] * 100_000)} = 1\n"),  # the parser needs quadratic time, here about ten minutes
        ("poetry.lock", f"[{'.'.join(['a'] * 100_000)}]\nb = 1\n" * 40),
    ],
)
def test_files_of_an_unfinished_build_are_parsed_in_limited_time_as_its_user(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "READ_SECONDS", 1)
    (tmp_path / name).write_text(text)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    with pytest.raises(TimeoutError, match="the files cannot be read within 1 s"), home.as_user("nobody"):
        requirements_from_files(tmp_path)
    assert (os.geteuid(), os.getegid()) == (0, 0)
