from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.packages import (
    PackagesError,
    among,
    candidates,
    installed,
    parse_simulated,
    require_supported_distribution,
    upstream_version,
)

FEDORA = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=40\nPRETTY_NAME="Fedora Linux 40"\n'


@pytest.mark.parametrize("number", ['VERSION_ID="12"', 'VERSION_ID="13"', "VERSION_ID=14", "# testing has no number"])
def test_debian_from_12_on_is_supported(number: str) -> None:
    require_supported_distribution(f"ID=debian\n{number}\n")


@pytest.mark.parametrize(
    ("os_release", "name"),
    [
        (FEDORA, "Fedora Linux 40"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian GNU/Linux 11"\n', "Debian GNU/Linux 11"),
        ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04"\n', "Ubuntu 24.04"),
        ("", "an unknown system"),
    ],
)
def test_anything_else_is_refused_by_name(os_release: str, name: str) -> None:
    with pytest.raises(PackagesError, match=rf"host \S+ runs {name}; funnel.tornado supports Debian 12 and 13"):
        require_supported_distribution(os_release)


def test_what_is_installed_and_what_could_be() -> None:
    names = ["dpkg", "no-such-package-at-all", "apt"]
    assert sorted(installed(names)) == ["apt", "dpkg"]
    assert sorted(candidates(names)) == ["apt", "dpkg"]


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [("1.22.1-9+deb12u3", "1.22.1"), ("1:1.2.11", "1.2.11"), ("4.2.5-1", "4.2.5"), ("2.0-rc1-3", "2.0-rc1")],
)
def test_the_authors_version_is_debians_without_epoch_and_revision(debian: str, upstream: str) -> None:
    assert upstream_version(debian) == upstream


def test_what_an_upgrade_would_do_is_what_apt_says() -> None:
    said = (
        "Reading package lists...\n"
        "Inst nginx [1.22.1-9] (1.22.1-9+deb12u1 Debian:12.9/stable [amd64]) []\n"
        "Inst linux-image-6.1.0-32-amd64 (6.1.129-1 Debian:12.10/stable [amd64])\n"
        "Conf nginx (1.22.1-9+deb12u1 Debian:12.9/stable [amd64])\n"
    )
    assert parse_simulated(said) == {
        "nginx": ("1.22.1-9", "1.22.1-9+deb12u1"),
        "linux-image-6.1.0-32-amd64": ("", "6.1.129-1"),
    }


def test_a_host_is_asked_again_unless_all_is_known() -> None:
    known = {"nginx": "1.26.3", "openssl": "3.5.1", "curl": "8.14.1"}
    assert among(["nginx", "openssl"], known) == {"nginx": "1.26.3", "openssl": "3.5.1"}
    assert among(["nginx", "git"], known) == among([], known) == among(None, known) == {}
