from __future__ import annotations

import os
import tempfile
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
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "READ_SECONDS", 1)
    with tempfile.TemporaryDirectory() as directory:  # those of pytest are private
        source = Path(directory)
        source.chmod(0o755)
        (source / name).write_text(text)
        with pytest.raises(TimeoutError, match="the files cannot be read within 1 s"), home.as_user("nobody"):
            requirements_from_files(source)
    assert (os.geteuid(), os.getegid()) == (0, 0)
