"""Results that are computed once in a run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible import constants

from ansible_collections.funnel.tornado.plugins.plugin_utils.run_cache import file_once, text_once


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(vars(constants), "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path


def test_a_result_is_computed_once_for_all_hosts() -> None:
    computed: list[str] = []

    def compute() -> str:
        computed.append("once")
        return "result"

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(lambda _host: text_once("key", compute), range(8))) == ["result"] * 8
    assert computed == ["once"]
    assert text_once("other", lambda: "other \udcff result") == "other \udcff result"
    assert text_once("other", compute) == "other \udcff result"


def test_a_failure_leaves_no_result() -> None:
    def fail(path: Path) -> None:
        path.write_text("part")
        raise ValueError(path)

    with pytest.raises(ValueError, match="once-"):
        file_once("key", fail)
    assert text_once("key", lambda: "whole") == "whole"


def test_a_result_that_cannot_be_stored_is_computed_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(constants), "DEFAULT_LOCAL_TMP", str(directory / "missing"))
    assert text_once("key", lambda: "result") == "result"
