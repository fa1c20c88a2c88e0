"""The tool of the test hosts, as far as it does not require root."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tools import fleet
from tools.fleet import Fleet, Host, free_network, own_files, reachable_resolvers
from tools.hosts import inventory, parse_arguments, parse_host
from tools.packages import ToolError
from tools.rootfs import (
    KEYRING,
    UBUNTU_MIRROR,
    Recipe,
    Source,
    debian_lines,
    locked,
    machine_sources,
    parse_deb822,
    parse_one_line,
    ubuntu_lines,
    ubuntu_mirror,
)

DEBIAN = "http://mirror.example.com/debian"
SECURITY = "http://mirror.example.com/debian-security"


def test_one_line_sources_are_parsed_with_options() -> None:
    text = f"""
# deb http://commented.example.com/debian bookworm main
deb {DEBIAN} bookworm main contrib  # a comment
deb-src {DEBIAN} bookworm main
deb [arch=amd64 signed-by=/etc/apt/keyrings/other.gpg] https://other.example.com/debian bookworm main
"""
    assert parse_one_line(text) == [
        Source(DEBIAN, "bookworm", ("main", "contrib")),
        Source("https://other.example.com/debian", "bookworm", ("main",), "/etc/apt/keyrings/other.gpg"),
    ]


def test_deb822_sources_are_parsed_by_stanza() -> None:
    text = f"""# Comments are allowed anywhere
Types: deb deb-src
# also here
URIs: {DEBIAN}
Suites: bookworm
  bookworm-updates
Components: main
Signed-By: {KEYRING}

Types: deb-src
URIs: {DEBIAN}
Suites: trixie
Components: main

Enabled: no
Types: deb
URIs: {DEBIAN}
Suites: sid
Components: main
"""
    assert parse_deb822(text) == [
        Source(DEBIAN, "bookworm", ("main",), KEYRING),
        Source(DEBIAN, "bookworm-updates", ("main",), KEYRING),
    ]


def test_mirror_list_of_a_cloud_image_is_resolved(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text(f"{DEBIAN}\nhttp://second.example.com/debian\n")
    (tmp_path / "sources.list.d").mkdir()
    stanza = f"Types: deb\nURIs: mirror+file://{mirrors}\nSuites: bookworm\nComponents: main\n"
    (tmp_path / "sources.list.d/debian.sources").write_text(stanza)
    assert machine_sources(tmp_path) == [Source(DEBIAN, "bookworm", ("main",))]


def test_release_uses_the_mirrors_and_suites_of_the_machine() -> None:
    machine = [
        Source("https://packages.example.com/vendor", "bookworm", ("main",), "/usr/share/keyrings/vendor.gpg"),
        Source("https://download.example.com/linux/debian", "bookworm", ("stable",)),
        Source(DEBIAN, "bookworm", ("main",), KEYRING),
        Source(SECURITY, "bookworm-security", ("main",), KEYRING),
    ]
    assert debian_lines(machine, "trixie") == (
        f"deb [signed-by={KEYRING}] {DEBIAN} trixie main",
        f"deb [signed-by={KEYRING}] {SECURITY} trixie-security main",
    )


def test_missing_mirror_of_debian_is_an_error() -> None:
    with pytest.raises(ToolError, match="no mirror of Debian"):
        debian_lines([Source("https://other.example.com", "nodistro", ("main",))], "bookworm")


def test_ubuntu_uses_the_mirror_beside_that_of_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    own, beside = "http://ubuntu.example.com/ubuntu", "http://mirror.example.com/ubuntu"
    machine = [Source(DEBIAN, "bookworm", ("main",)), Source(f"{own}/", "noble", ("main",))]
    answering: list[str] = [own, beside]
    monkeypatch.setattr("tools.rootfs.has_release", lambda mirror, _release: mirror in answering)
    assert ubuntu_mirror(machine, "noble") == own
    answering.remove(own)
    assert ubuntu_mirror(machine, "noble") == beside
    answering.clear()
    assert ubuntu_mirror(machine, "noble") == UBUNTU_MIRROR


def test_ubuntu_is_verified_with_its_own_key() -> None:
    assert ubuntu_lines("http://mirror.example.com/ubuntu", "noble", Path("/key.asc")) == tuple(
        f"deb [signed-by=/key.asc] http://mirror.example.com/ubuntu {suite} main universe"
        for suite in ("noble", "noble-updates", "noble-security")
    )


def test_every_change_of_a_recipe_changes_its_root_file_system() -> None:
    recipe = Recipe("bookworm", (f"deb {DEBIAN} bookworm main",), (), {})
    others = [
        dataclasses.replace(recipe, release="trixie"),
        dataclasses.replace(recipe, sources=()),
        dataclasses.replace(recipe, apt_options=('Acquire::http::Proxy "http://proxy.example.com";',)),
        dataclasses.replace(recipe, certificates={"company.crt": "PEM"}),
        dataclasses.replace(recipe, packages=(*recipe.packages, "vim")),
        dataclasses.replace(recipe, hooks=()),
    ]
    assert len({variant.root for variant in [recipe, *others]}) == 1 + len(others)
    assert recipe.root == dataclasses.replace(recipe).root
    assert recipe.root.parent.name.startswith("bookworm-")


def test_first_free_network_is_used_with_wraparound() -> None:
    taken = [IPv4Network("10.213.255.0/24"), IPv4Network("10.213.0.128/25"), IPv4Network("10.213.1.7/32")]
    assert free_network([], 7) == IPv4Network("10.213.7.0/24")
    assert free_network(taken, 255) == IPv4Network("10.213.2.0/24")
    assert free_network([IPv4Network("10.0.0.0/8"), IPv4Network("0.0.0.0/0")], 7) == IPv4Network("10.213.7.0/24")
    with pytest.raises(ToolError, match="in use"):
        free_network([IPv4Network("10.213.0.0/16")], 7)


def test_loopback_resolvers_are_excluded() -> None:
    assert reachable_resolvers("# stub\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\nsearch example.com\n") == (
        "nameserver 192.0.2.1\nsearch example.com\n"
    )


def test_host_has_its_address_and_gateway() -> None:
    files = own_files(Host("web1", "trixie", "10.213.7.11"), IPv4Network("10.213.7.0/24"))
    assert files["etc/hostname"] == "web1\n"
    assert "Address=10.213.7.11/24\nGateway=10.213.7.1\n" in files["etc/systemd/network/10-host0.network"]


@pytest.mark.parametrize(
    ("text", "host"),
    [("demo1", ("demo1", None)), ("demo1:trixie", ("demo1", "trixie")), ("demo1:12", ("demo1", "bookworm"))],
)
def test_host_argument_has_a_name_and_an_optional_release(text: str, host: tuple[str, str | None]) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", "Demo", "../demo", "-demo", "demo:buster"])
def test_invalid_host_argument_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_host(text)


def test_inventory_has_the_connection_variables_of_each_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STATE", tmp_path)
    empty = Fleet("demo")
    assert inventory(empty, "app_hosts") == {"app_hosts": {"hosts": []}, "_meta": {"hostvars": {}}}
    empty.directory.mkdir()
    empty.network, empty.hosts = IPv4Network("10.213.7.0/24"), {"demo1": Host("demo1", "trixie", "10.213.7.11")}
    empty.save()
    known_hosts = f"-o UserKnownHostsFile={empty.directory}/known_hosts -o StrictHostKeyChecking=yes"
    assert inventory(Fleet("demo"), "app_hosts") == {
        "app_hosts": {"hosts": ["demo1"]},
        "_meta": {
            "hostvars": {
                "demo1": {
                    "ansible_host": "10.213.7.11",
                    "ansible_user": "root",
                    "ansible_ssh_private_key_file": f"{empty.directory}/id_ed25519",
                    "ansible_ssh_common_args": known_hosts,
                }
            }
        },
    }


def test_fleets_of_two_clones_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STATE", tmp_path)
    here = Fleet("demo")
    monkeypatch.setattr(fleet, "CLONE", Path("/elsewhere"))
    there = Fleet("demo")
    assert not {here.mark, here.directory, here.lock} & {there.mark, there.directory, there.lock}
    assert len(here.mark) <= 15


def test_lock_is_exclusive_and_leaves_no_file(tmp_path: Path) -> None:
    lock, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    workers = [multiprocessing.get_context("fork").Process(target=count, args=(lock, counter)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert counter.read_text() == "80"
    assert not lock.exists()


def count(lock: Path, counter: Path) -> None:
    for _ in range(20):
        with locked(lock):
            number = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(number + 1))


def test_only_existing_directories_can_be_mounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(["up", "--bind", f"{tmp_path}/.", "web1"]).bind == [str(tmp_path)]
    with pytest.raises(SystemExit):
        parse_arguments(["up", "--bind", f"{tmp_path}/none", "web1"])
    assert f"there is no directory {tmp_path}/none" in capsys.readouterr().err


def test_host_is_forgotten_after_an_interrupted_removal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleet, "STATE", tmp_path)
    demo = Fleet("demo")
    demo.hosts = {name: Host(name, "bookworm", f"10.213.0.{number}") for number, name in enumerate(("demo1", "demo2"), 11)}
    for name in demo.hosts:
        key = demo.disk(name) / fleet.HOST_KEY
        key.parent.mkdir(parents=True)
        key.with_suffix(".pub").write_text("ssh-ed25519 AAAA\n")

    def interrupt(_directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet, "remove", interrupt)
    monkeypatch.setattr(Fleet, "_unplug", lambda *_arguments: None)
    with pytest.raises(KeyboardInterrupt):
        demo.down(["demo1"])
    assert list(Fleet("demo").hosts) == ["demo2"]


def test_kernel_settings_are_restored_with_the_last_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high, boot = tmp_path / "low", tmp_path / "high", tmp_path / "boot"
    monkeypatch.setattr(fleet, "KERNEL", {low: 10, high: 10})
    monkeypatch.setattr(fleet, "SAVED_KERNEL", tmp_path / "before.json")
    monkeypatch.setattr(fleet, "BOOT_ID", boot)
    low.write_text("1\n")
    high.write_text("20\n")
    boot.write_text("this one")
    demo = Fleet("demo")
    for _ in range(2):
        demo._set_kernel()
        assert (int(low.read_text()), int(high.read_text())) == (10, 20)
    demo._restore_kernel()
    assert (int(low.read_text()), int(high.read_text())) == (1, 20)
    boot.write_text("the next one")
    low.write_text("2")
    demo._restore_kernel()
    assert low.read_text() == "2", "a value of another boot must not be restored"
