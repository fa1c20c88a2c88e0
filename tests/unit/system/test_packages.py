from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import (
    PackagesError,
    candidates,
    installed_versions,
    parse_providers,
    parse_provides,
    parse_simulation,
    require_names,
    require_supported_host,
    select_versions,
    upstream_versions,
)
from ansible_collections.funnel.tornado.plugins.modules import packages

FEDORA = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=40\nPRETTY_NAME="Fedora Linux 40"\n'


UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="{0}"\nVERSION_CODENAME={1}\nPRETTY_NAME="Ubuntu {0}"\n'


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path


@pytest.mark.parametrize("number", ['VERSION_ID="12"', 'VERSION_ID="13"', "VERSION_ID=14", "# testing has no number"])
def test_debian_12_and_later_are_supported(host: Path, number: str) -> None:
    (host / "etc/os-release").write_text(f"ID=debian\n{number}\n")
    require_supported_host(host)


@pytest.mark.parametrize(("number", "codename"), [("22.04", "jammy"), ("24.04", "noble"), ("26.04", "resolute")])
def test_ubuntu_lts_releases_are_supported(host: Path, number: str, codename: str) -> None:
    (host / "etc/os-release").write_text(UBUNTU.format(number, codename))
    assert require_supported_host(host).codename == codename


def test_an_old_python_is_refused_with_a_remedy(host: Path) -> None:
    (host / "etc/os-release").write_text(UBUNTU.format("22.04", "jammy"))
    message = (
        r"host \S+ runs modules with Python 3.10, but they need 3.11; install python3.11 .*, and set ansible_python_interpreter"
    )
    with pytest.raises(PackagesError, match=message):
        require_supported_host(host, python=(3, 10))


@pytest.mark.parametrize(
    ("os_release", "name"),
    [
        (FEDORA, "Fedora Linux 40"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian GNU/Linux 11"\n', "Debian GNU/Linux 11"),
        (UBUNTU.format("20.04", "focal"), "Ubuntu 20.04"),
        (UBUNTU.format("25.10", "questing"), "Ubuntu 25.10"),
        ("", "an unknown system"),
    ],
)
def test_other_systems_are_refused_with_their_name(host: Path, os_release: str, name: str) -> None:
    if os_release:
        (host / "etc/os-release").write_text(os_release)
    supported = "Debian 12 and 13, Ubuntu 22.04, 24.04 and 26.04"
    with pytest.raises(PackagesError, match=rf"host \S+ runs {name}; funnel.tornado supports {supported}"):
        require_supported_host(host)


def test_installed_and_candidate_versions() -> None:
    names = ["dpkg", "no-such-package-at-all", "apt"]
    assert sorted(installed_versions(names)) == ["apt", "dpkg"]
    assert sorted(candidates(names)) == ["apt", "dpkg"]


@pytest.mark.parametrize(
    "name", ["--option=APT::Get::Purge=true", "-oDir::Etc=/srv", "nginx-", "nginx=1.22", "nginx/sid", "^web", ""]
)
def test_module_accepts_names_of_packages_only(name: str) -> None:
    """With a trailing hyphen, apt-get would remove the package."""
    arguments = {"name": ["dpkg", name], "state": "latest", "lists_max_age": 1 << 40, "_ansible_check_mode": True}
    done = subprocess.run(
        [sys.executable, packages.__file__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert f"names of Debian packages are required, such as ffmpeg; found {name!r}" == json.loads(done.stdout)["msg"]


def test_names_of_packages_may_have_signs_and_an_architecture() -> None:
    require_names(["g++", "libc6:i386", "python3.11", "libstdc++-12-dev"])


def test_a_name_with_an_architecture_is_installed_with_that_one_only() -> None:
    native = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    names = [f"dpkg:{native}", "libc6:no-such-architecture", f"libc6:{native}"]
    assert sorted(installed_versions(names)) == [f"dpkg:{native}", f"libc6:{native}"]
    everything = installed_versions()
    assert everything["dpkg"] == installed_versions(names)[f"dpkg:{native}"]
    assert not [name for name in everything if ":" in name]


def test_a_name_with_the_architecture_of_the_host_can_be_installed() -> None:
    own = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    foreign = "i386" if own == "amd64" else "amd64"
    assert sorted(candidates([f"apt:{own}", "tzdata:all", f"apt:{foreign}"])) == [f"apt:{own}", "tzdata:all"]


def test_a_name_is_not_an_option_of_the_package_manager(tmp_path: Path) -> None:
    """An option could make apt run a program as root, here one that it calls to find out about foreign architectures."""
    mark = tmp_path / "mark"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    names = [f"--option=Dir::Bin::dpkg={program}", "--option=Dir::State::status=/dev/null", "--version"]
    assert installed_versions(names) == candidates(names) == {}
    assert not mark.exists()


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [("1.22.1-9+deb12u3", "1.22.1"), ("1:1.2.11", "1.2.11"), ("4.2.5-1", "4.2.5"), ("2.0-rc1-3", "2.0-rc1")],
)
def test_upstream_versions_have_no_epoch_and_revision(debian: str, upstream: str) -> None:
    assert upstream_versions({"one": debian}) == {"one": upstream}


def test_simulated_upgrades_are_parsed() -> None:
    output = (
        "Reading package lists...\n"
        "Inst nginx [1.22.1-9] (1.22.1-9+deb12u1 Debian:12.9/stable [amd64]) []\n"
        "Inst linux-image-6.1.0-32-amd64 (6.1.129-1 Debian:12.10/stable [amd64])\n"
        "Conf nginx (1.22.1-9+deb12u1 Debian:12.9/stable [amd64])\n"
    )
    assert parse_simulation(output) == {
        "nginx": ("1.22.1-9", "1.22.1-9+deb12u1"),
        "linux-image-6.1.0-32-amd64": ("", "6.1.129-1"),
    }


def test_versions_are_selected_only_if_all_are_known() -> None:
    versions = {"nginx": "1.26.3", "openssl": "3.5.1", "curl": "8.14.1"}
    assert select_versions(["nginx", "openssl"], versions) == {"nginx": "1.26.3", "openssl": "3.5.1"}
    assert select_versions(["nginx", "git"], versions) == select_versions([], versions) == select_versions(None, versions) == {}


def test_an_installed_package_counts_as_what_it_provides() -> None:
    output = "installed\t1:5.45-3build1\tlibmagic1 (= 1:5.45-3build1), magic\ninstalled\t2.8\t\nconfig-files\t1\tgone\n"
    assert parse_provides(output) == {"libmagic1": "1:5.45-3build1", "magic": "1:5.45-3build1"}


def test_a_virtual_package_has_the_version_of_its_only_provider() -> None:
    virtual = "Package: {}\nVersions: \n\nReverse Depends: \nProvides: \nReverse Provides: \n{}"
    single = virtual.format("libmagic1", "libmagic1t64 1:5.45-3build1 (= 1:5.45-3build1)\nlibmagic1t64 1:5.45-3 (= 1:5.45-3)\n")
    several = virtual.format("mail-transport-agent", "postfix 3.8.6-1 (= )\ndma 0.13-1 (= )\n")
    output = f"{single}{several}Package: real\nVersions: \n1.0 (/var/lib/apt/lists/x)\n\nReverse Provides: \n"
    assert parse_providers(output) == {"libmagic1": "1:5.45-3build1"}
