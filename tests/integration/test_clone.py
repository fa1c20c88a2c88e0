"""The commands of the README work in a fresh clone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tools.snapshots import directory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the checkout with a link to its .venv; a copy has its own test hosts."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", ".*_cache"))
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def run(directory: Path, *command: str) -> str:
    """Run a command outside of the make process that runs the tests, expect success, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def page(url: str) -> str:
    """Return a page; retry errors such as 502 of a host that has just booted."""
    for _ in range(50):
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not serve")


def mark(clone: Path) -> str:
    """Return the part that the names of all resources of a clone's hosts share."""
    return run(clone, "python3", "-c", "from tools.fleet import Fleet; print(Fleet('demo').mark.partition('-')[2])").strip()


def booting(mark: str) -> set[str]:
    """Return the command lines of the containers with a mark; a zombie has no command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            found.add(path.read_text(errors="replace").replace("\0", " "))
    return {line for line in found if line.startswith("systemd-nspawn") and mark in line}


def used_resources(mark: str) -> set[str]:
    """Return the resources of the hosts with a mark: network links, nftables tables, directories and processes."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    tables = set(run(ROOT, "nft", "list", "tables").splitlines())
    kept = {str(path) for path in Path("/var/lib/funnel-hosts").glob("*")}
    return {name for name in links | tables | kept if mark in name} | booting(mark)


def test_demo_prints_url_of_served_page_and_cleans_up(clone: Path) -> None:
    marked = mark(clone)
    try:
        url = run(clone, "make", "demo").splitlines()[-1]
        assert len(used_resources(marked)) >= 5, "link, bridge, table, directory, container"
        assert re.fullmatch(r"http://[\d.]+/", url)
        assert "It works." in page(url)
        assert "changed=0" in run(clone, "make", "demo")
        run(clone, "python3", "-m", "tools.hosts", "reboot", "demo1")
        assert run(clone, "python3", "-m", "tools.hosts", "ssh", "demo1", "hostname") == "demo1\n"
        assert "It works." in page(url)
    finally:
        run(clone, "make", "demo-down")
    assert used_resources(marked) == set()


def test_changed_code_is_reloaded_on_a_booted_host(clone: Path) -> None:
    """The commands of docs/operations/development.md; the scenario services covers development on the local machine."""
    hosts = ["python3", "-m", "tools.hosts"]
    variables = "@inventories/dev/group_vars/all.yml"
    try:
        run(clone, *hosts, "up", "--bind", "files", "demo1")
        run(clone, "ansible-playbook", "site.yml", "-i", "inventories/demo", "-e", variables)
        url = f"http://{run(clone, *hosts, 'list').split()[1]}/"
        assert "Painted" not in page(url)
        template = clone / "files/reporting_app/reporting_app/templates/base.html"
        template.write_text(template.read_text().replace("<body>", "<body>Painted"))
        deadline = time.monotonic() + 30
        while "Painted" not in page(url):
            assert time.monotonic() < deadline, "the changed page is not served"
            time.sleep(0.2)
    finally:
        run(clone, *hosts, "down", "--all")
    assert used_resources(mark(clone)) == set()


@pytest.mark.parametrize("inventory", ["prod", "inventories/prod"])
@pytest.mark.parametrize("option", ["--list-tasks", "--list-hosts", "--syntax-check"])
def test_site_playbook_and_example_inventories_are_valid(inventory: str, option: str) -> None:
    output = run(ROOT, "ansible-playbook", "site.yml", "-i", inventory, option)
    assert {"--list-tasks": "Build the releases", "--list-hosts": "web1.example.com", "--syntax-check": "site.yml"}[
        option
    ] in output


def test_make_help_lists_every_target_of_the_readme() -> None:
    listed = run(ROOT, "make", "help")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) - {"help"}
    assert named
    assert all(f"make {target} " in listed for target in named)


def test_two_clones_boot_separate_hosts_concurrently(clone: Path, tmp_path: Path) -> None:
    clones = [clone, shutil.copytree(clone, tmp_path / "other", symlinks=True)]
    command = ["python3", "-m", "tools.hosts"]
    try:
        started = [subprocess.Popen([*command, "up", "web1"], cwd=copy) for copy in clones]
        assert [process.wait(timeout=300) for process in started] == [0, 0]
        addresses = {run(copy, *command, "list").split()[1] for copy in clones}
        assert len(addresses) == 2
        assert [run(copy, *command, "ssh", "web1", "hostname") for copy in clones] == ["web1\n", "web1\n"]
    finally:
        for copy in clones:
            run(copy, *command, "down", "--all")
    assert [used_resources(mark(copy)) for copy in clones] == [set(), set()]


def test_host_starts_from_a_snapshot_with_an_identity_of_its_own(clone: Path) -> None:
    hosts = ["python3", "-m", "tools.hosts"]
    look = ["cat", "/root/kept", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"]
    try:
        run(clone, *hosts, "up", "web1")
        # A directory of the bare release is renamed, which an overlay must support.
        run(clone, *hosts, "ssh", "web1", "mv /usr/share/doc /usr/share/moved; echo kept > /root/kept")
        before = run(clone, *hosts, "ssh", "web1", *look).splitlines()
        run(clone, *hosts, "snapshot", "before", "web1")
        assert run(clone, *hosts, "list") == ""
        run(clone, *hosts, "up", "--from", "before", "web1", "web2")
        after = run(clone, *hosts, "ssh", "web1", *look).splitlines()
        assert before[0] == after[0] == "kept"
        assert not set(before[1:]) & set(after[1:]), "the ID and the key are those of another host"
        assert run(clone, *hosts, "ssh", "web1", "ls -d /usr/share/moved /usr/share/doc || true") == "/usr/share/moved\n"
        assert run(clone, *hosts, "ssh", "web2", "ls /root") == "", "a host without a snapshot is bare"
        assert "web2" in run(clone, *hosts, "ssh", "web1", "cat /etc/hosts")
    finally:
        run(clone, *hosts, "down", "--all")
        shutil.rmtree(directory(clone, "before").parent, ignore_errors=True)
    assert used_resources(mark(clone)) == set()


def test_interrupted_boot_cleans_up(clone: Path) -> None:
    marked = mark(clone)
    creating = subprocess.Popen(["python3", "-m", "tools.hosts", "up", "web1", "web2"], cwd=clone)
    while creating.poll() is None and not booting(marked):
        time.sleep(0.01)
    creating.terminate()
    assert creating.wait(timeout=60) != 0
    assert used_resources(marked) == set()


def test_missing_root_privileges_are_reported_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        shutil.copytree(ROOT / "tools", Path(directory, "tools"), ignore=shutil.ignore_patterns("__pycache__"))
        command = ["/usr/bin/python3", "-B", "-m", "tools.hosts", "up", "web1"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        result = subprocess.run(
            command, cwd=directory, env=environment, user="nobody", capture_output=True, text=True, check=False
        )
    assert result.returncode == 1
    assert re.fullmatch(r"hosts: .*root.*\n", result.stderr), result.stderr
