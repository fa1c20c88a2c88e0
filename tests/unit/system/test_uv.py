from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.home import build_environment
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import SOURCES, Sources, Uv
from ansible_collections.funnel.tornado.plugins.modules import uv as uv_module


def test_uv_is_up_to_date_if_installed_linked_and_the_only_version(tmp_path: Path) -> None:
    uv = Uv("1.2.3", home=tmp_path / "uv", link=tmp_path / "bin/uv")
    assert not uv.is_up_to_date()
    uv.program.parent.mkdir(parents=True)
    uv.program.write_text("#!/bin/sh\n")
    uv.program.chmod(0o755)
    uv.link.parent.mkdir()
    assert not uv.is_up_to_date()
    uv.install([], {})  # already installed: nothing is downloaded
    assert uv.link.readlink() == uv.program
    assert uv.is_up_to_date()
    record = uv.directory / "uv-1.2.3.dist-info/RECORD"
    record.parent.mkdir()
    record.write_text("../../bin/uv,sha256=abc,10\nuv/__init__.py,,5\n")
    assert uv.is_up_to_date(), "it has ten bytes"
    record.write_text("../../bin/uv,sha256=abc,11\nuv/__init__.py,,5\n")
    assert not uv.is_up_to_date(), "it is truncated"
    record.unlink()
    record.parent.rmdir()
    (tmp_path / "uv/1.2.2").mkdir()
    assert not uv.is_up_to_date()
    uv.install([], {})
    assert [path.name for path in (tmp_path / "uv").iterdir()] == ["1.2.3"]


def test_the_environment_of_pip_contains_only_set_values() -> None:
    assert Sources().pip_environment() == {}, "the host's own pip.conf holds"
    assert Sources(index_url="https://a").pip_environment() == {"PIP_INDEX_URL": "https://a", "PIP_NO_INDEX": "0"}
    everything = Sources(
        index_url="https://u:p@a/simple",
        extra_index_urls=["https://b", "https://c"],
        ca_bundle="/ca",
        wheelhouse=Path("/opt/wheelhouse"),
    )
    assert everything.pip_environment() == {
        "PIP_INDEX_URL": "https://u:p@a/simple",
        "PIP_EXTRA_INDEX_URL": "https://b https://c",
        "PIP_CERT": "/ca",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/opt/wheelhouse",
    }


def test_the_environment_of_builds_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "environment"
    assert build_environment(path) == {}
    sources = Sources(index_url="https://u:p=q@a/simple", ca_bundle="/ca", no_proxy="a,b", mirror="https://m")
    toml, environment = sources.files()
    path.write_bytes(environment.content)
    assert build_environment(path) == {
        "SSL_CERT_FILE": "/ca",
        "GIT_SSL_CAINFO": "/ca",
        "UV_DEFAULT_INDEX": "https://u:p=q@a/simple",
        "UV_PYTHON_INSTALL_MIRROR": "https://m",
        "no_proxy": "a,b",
    }
    assert (environment.mode, environment.secret) == (0o640, True)
    assert b"u:p" not in toml.content


def test_a_wheelhouse_replaces_all_indexes() -> None:
    toml, environment = Sources(index_url="https://a/simple", wheelhouse=Path("/opt/wheelhouse")).files()
    settings = tomllib.loads(toml.content.decode())
    assert settings["no-index"] is True
    assert settings["find-links"] == ["/opt/wheelhouse"]
    assert b"https://a/simple" not in environment.content


def test_check_mode_predicts_that_another_program_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "bin/uv"
    link.parent.mkdir()
    link.write_text("of the administrator")
    monkeypatch.setattr(uv_module, "Uv", functools.partial(Uv, home=tmp_path / "uv", link=link))
    warnings: list[str] = []
    params: dict[str, object] = {"version": "1.2.3", "packages": {}, "hashes": [], "archive": None, **dict.fromkeys(SOURCES, "")}
    module = SimpleNamespace(params=params, check_mode=True, warn=warnings.append, _diff=False)
    assert uv_module.converge(cast("Any", module))["changed"]
    assert [warning.partition(";")[0] for warning in warnings] == [f"{link} is replaced"]
    assert link.read_text() == "of the administrator"
