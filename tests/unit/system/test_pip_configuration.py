from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.pip_configuration import (
    SYSTEM_CERTIFICATES,
    PipConfigurationError,
    uv_environment,
    uv_options,
)

PIP = """\
[global]
index-url = https://u:p@mirror.test/simple
extra_index_url =
    https://one.test/simple
    https://two.test/simple
trusted-host = mirror.test
cert = /etc/pki/mirror.pem
proxy = http://proxy.test:3128
timeout = 60
[install]
user = true
find-links = /opt/wheels /srv/wheels
"""

INDEXES = {
    "UV_DEFAULT_INDEX": "https://u:p@mirror.test/simple",
    "UV_INDEX": "https://one.test/simple https://two.test/simple",
    "UV_FIND_LINKS": "/opt/wheels,/srv/wheels",
}
OTHERS = {"UV_INSECURE_HOST": "mirror.test", "SSL_CERT_FILE": "/etc/pki/mirror.pem", "all_proxy": "http://proxy.test:3128"}


def read(directory: Path, toml: str = "", **configured: str) -> dict[str, str]:
    """Return the environment of uv on a host whose files of pip and uv are in a directory."""
    (directory / "uv.toml").write_text(toml)
    return uv_environment(configured, [directory / "none.conf", directory / "pip.conf"], directory / "uv.toml")


def test_the_configuration_of_pip_applies_to_uv(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    (tmp_path / "pip.conf").write_text(PIP)
    assert read(tmp_path, SSL_CERT_FILE=SYSTEM_CERTIFICATES) == INDEXES | OTHERS


def test_the_inventory_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(PIP)
    assert read(tmp_path, UV_INDEX="https://other.test") == OTHERS
    assert read(tmp_path, "no-index = true") == OTHERS
    certificates = read(tmp_path, SSL_CERT_FILE="/etc/pki/own.pem", https_proxy="http://other.test")
    assert certificates == INDEXES | {"UV_INSECURE_HOST": "mirror.test"}


@pytest.mark.parametrize(("value", "options"), [("true", ["--no-index"]), ("1", ["--no-index"]), ("off", []), ("", [])])
def test_uv_uses_no_index_if_pip_uses_directories_only(tmp_path: Path, value: str, options: list[str]) -> None:
    (tmp_path / "pip.conf").write_text(f"[install]\nno-index = {value}\nfind-links = /srv/wheels\n")
    files, toml = [tmp_path / "pip.conf"], tmp_path / "uv.toml"
    assert uv_options({}, files, toml) == options
    assert uv_options({"UV_DEFAULT_INDEX": "https://other.test"}, files, toml) == []


def test_uv_uses_its_index_if_pip_could_install_nothing(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[install]\nno-index = true\n")
    assert uv_options({}, [tmp_path / "pip.conf"], tmp_path / "uv.toml") == []


@pytest.mark.parametrize("text", ["index-url = x\n", "[global]\na = 1\na = 2\n"])
def test_a_file_that_pip_refuses_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pip.conf").write_text(text)
    with pytest.raises(PipConfigurationError, match=r"pip\.conf cannot be read: "):
        read(tmp_path)
