"""Settings that other files of a host override."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status.configuration import overridden_settings


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Return a host with the settings of the collection in effect."""
    contents = {
        "etc/sysctl.d/50-funnel.conf": "# Ansible managed\nnet.core.somaxconn = 4096\n",
        "etc/security/limits.d/50-funnel.conf": "*    soft nofile 50000\n*    hard nofile 50000\nroot soft nofile 50000\n",
        "proc/sys/net/core/somaxconn": "4096\n",
    }
    for name, content in contents.items():
        write(tmp_path, name, content)
    return tmp_path


def write(base: Path, name: str, content: str) -> None:
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_text(content)


def found(base: Path) -> list[str]:
    return list(overridden_settings([], base))


def test_settings_in_effect_are_no_problem(host: Path) -> None:
    write(host, "etc/sysctl.d/10-x.conf", "net.core.somaxconn=128\n")
    write(host, "etc/sysctl.d/99-x.conf", "net.core.somaxconn=8192\n# net.core.somaxconn=1\n")
    write(host, "etc/security/limits.d/90-x.conf", "ann soft nofile 10\n* soft nproc 10\n* - nofile 60000\n")
    assert found(host) == []


@pytest.mark.parametrize("name", ["etc/sysctl.d/99-x.conf", "usr/lib/sysctl.d/90-x.conf"])
def test_a_later_file_of_kernel_settings_is_named(host: Path, name: str) -> None:
    write(host, name, "net/core/somaxconn = 256\n")
    [problem] = found(host)
    assert problem.startswith(f"net.core.somaxconn: /{name} overrides /etc/sysctl.d/50-funnel.conf")
    assert problem.endswith("so that it will be 256 instead of 4096 after a reboot")


def test_a_file_hides_those_of_the_same_name_in_later_directories(host: Path) -> None:
    write(host, "usr/lib/sysctl.d/90-x.conf", "net.core.somaxconn = 256\n")
    write(host, "etc/sysctl.d/90-x.conf", "")
    assert found(host) == []


def test_a_lower_value_now_is_reported(host: Path) -> None:
    write(host, "proc/sys/net/core/somaxconn", "128\n")
    assert found(host) == ["net.core.somaxconn: is 128 instead of 4096; run site.yml"]


def test_a_later_file_of_limits_is_named(host: Path) -> None:
    write(host, "etc/security/limits.d/90-x.conf", "root - nofile 1024\n")
    write(host, "etc/security/limits.d/10-x.conf", "* - nofile 1\n")
    assert found(host) == [
        "/etc/security/limits.d/90-x.conf overrides /etc/security/limits.d/50-funnel.conf: "
        "logins of root get 1024 open files instead of 50000"
    ]
