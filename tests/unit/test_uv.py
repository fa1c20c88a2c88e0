from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.uv import Uv, build_environment, pip_environment


def test_it_is_right_only_if_installed_linked_and_alone(tmp_path: Path) -> None:
    uv = Uv("1.2.3", home=tmp_path / "uv", link=tmp_path / "bin/uv")
    assert not uv.is_right()
    uv.program.parent.mkdir(parents=True)
    uv.program.write_text("#!/bin/sh\n")
    uv.program.chmod(0o755)
    uv.link.parent.mkdir()
    assert not uv.is_right()
    uv.install([], {})  # the version is there: nothing is downloaded
    assert uv.link.readlink() == uv.program
    assert uv.is_right()
    (tmp_path / "uv/1.2.2").mkdir()
    assert not uv.is_right()
    uv.install([], {})
    assert [path.name for path in (tmp_path / "uv").iterdir()] == ["1.2.3"]


def test_pip_is_told_only_what_is_set() -> None:
    nothing = pip_environment(index_url="", extra_index_urls=[], ca_bundle="", proxy="", no_proxy="", wheelhouse=None)
    assert nothing == {}, "the host's own pip.conf holds"
    everything = pip_environment(
        index_url="https://u:p@a/simple",
        extra_index_urls=["https://b", "https://c"],
        ca_bundle="/ca",
        proxy="",
        no_proxy="",
        wheelhouse=Path("/opt/wheelhouse"),
    )
    assert everything == {
        "PIP_INDEX_URL": "https://u:p@a/simple",
        "PIP_EXTRA_INDEX_URL": "https://b https://c",
        "PIP_CERT": "/ca",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/opt/wheelhouse",
    }


def test_the_environment_of_builds_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "environment"
    assert build_environment(path) == {}
    path.write_text("# Ansible managed\nUV_DEFAULT_INDEX=https://u:p=q@a/simple\nno_proxy=a,b\n")
    assert build_environment(path) == {"UV_DEFAULT_INDEX": "https://u:p=q@a/simple", "no_proxy": "a,b"}
