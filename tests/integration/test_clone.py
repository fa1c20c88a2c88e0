"""What the README promises of a clone: its commands, run in a copy as a newcomer would."""

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

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the checkout, but for the tools in .venv: a copy has test hosts of its own."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", ".*_cache"))
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def run(directory: Path, *command: str) -> str:
    """Run a command to its successful end, not as a part of the make that runs the tests; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def page(url: str) -> str:
    """Return a page; a host that has just booted may need a moment until it is not answered with 502."""
    for _ in range(50):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not serve")


def mark(clone: Path) -> str:
    """Return what the names of all that a clone's hosts take of the machine have in common."""
    return run(clone, "python3", "-c", "from tools.fleet import Fleet; print(Fleet('demo').mark.partition('-')[2])").strip()


def booting(mark: str) -> set[str]:
    """Return the command lines of the containers that bear a mark; one that init has yet to collect has none any more."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it is gone
            found.add(path.read_text(errors="replace").replace("\0", " "))
    return {line for line in found if line.startswith("systemd-nspawn") and mark in line}


def traces(mark: str) -> set[str]:
    """Return what the hosts that bear a mark take of the machine: links, tables of nftables, directories and processes."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    tables = set(run(ROOT, "nft", "list", "tables").splitlines())
    kept = {str(path) for path in Path("/var/lib/funnel-hosts").glob("*")}
    return {name for name in links | tables | kept if mark in name} | booting(mark)


def test_demo_ends_with_the_url_of_a_served_page_and_leaves_no_trace(clone: Path) -> None:
    marked = mark(clone)
    try:
        url = run(clone, "make", "demo").splitlines()[-1]
        assert len(traces(marked)) >= 5, "link, bridge, table, directory, container"
        assert re.fullmatch(r"http://[\d.]+/", url)
        assert "It works." in page(url)
        assert "changed=0" in run(clone, "make", "demo")
        run(clone, "python3", "-m", "tools.hosts", "reboot", "demo1")
        assert run(clone, "python3", "-m", "tools.hosts", "ssh", "demo1", "hostname") == "demo1\n"
        assert "It works." in page(url)
    finally:
        run(clone, "make", "demo-down")
    assert traces(marked) == set()


def test_apps_are_developed_on_a_booted_host_where_their_code_lies(clone: Path) -> None:
    """The commands of docs/operations/development.md; on one's own machine the scenario services has them."""
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
            assert time.monotonic() < deadline, "what was changed is not served"
            time.sleep(0.2)
    finally:
        run(clone, *hosts, "down", "--all")
    assert traces(mark(clone)) == set()


@pytest.mark.parametrize("inventory", ["prod", "inventories/prod"])
@pytest.mark.parametrize("look", ["--list-tasks", "--list-hosts", "--syntax-check"])
def test_the_playbook_and_the_example_fleet_are_valid_from_the_root(inventory: str, look: str) -> None:
    output = run(ROOT, "ansible-playbook", "site.yml", "-i", inventory, look)
    assert {"--list-tasks": "Build the releases", "--list-hosts": "web1.example.com", "--syntax-check": "site.yml"}[
        look
    ] in output


def test_help_lists_every_target_that_the_readme_names() -> None:
    listed = run(ROOT, "make", "help")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) - {"help"}
    assert named
    assert all(f"make {target} " in listed for target in named)


def test_two_clones_boot_hosts_at_once_and_each_reaches_its_own(clone: Path, tmp_path: Path) -> None:
    clones = [clone, shutil.copytree(clone, tmp_path / "other", symlinks=True)]
    command = ["python3", "-m", "tools.hosts"]
    try:
        started = [subprocess.Popen([*command, "up", "web1"], cwd=one) for one in clones]
        assert [process.wait(timeout=300) for process in started] == [0, 0]
        addresses = {run(one, *command, "list").split()[1] for one in clones}
        assert len(addresses) == 2
        assert [run(one, *command, "ssh", "web1", "hostname") for one in clones] == ["web1\n", "web1\n"]
    finally:
        for one in clones:
            run(one, *command, "down", "--all")
    assert [traces(mark(one)) for one in clones] == [set(), set()]


def test_hosts_whose_creation_is_broken_off_leave_no_trace(clone: Path) -> None:
    marked = mark(clone)
    creating = subprocess.Popen(["python3", "-m", "tools.hosts", "up", "web1", "web2"], cwd=clone)
    while creating.poll() is None and not booting(marked):
        time.sleep(0.01)
    creating.terminate()
    assert creating.wait(timeout=60) != 0
    assert traces(marked) == set()


def test_without_root_and_sudo_one_line_says_what_is_missing() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        shutil.copytree(ROOT / "tools", Path(directory, "tools"), ignore=shutil.ignore_patterns("__pycache__"))
        command = ["/usr/bin/python3", "-B", "-m", "tools.hosts", "up", "web1"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(command, cwd=directory, env=environment, user="nobody", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"hosts: .*root.*\n", done.stderr), done.stderr
