"""Development on a local machine: the code is in the developer's home directory, and Ansible runs on the machine itself."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.remote import ROOT, Site, address, eventually, hosts, processes

testinfra_hosts = ["ansible://lock"]

HOME = "/home/ann"
CLONE = f"{HOME}/clone"
APPS = ("sample", "rest_api", "reporting_app")
RELEASED = re.compile(r": (\w+) is release ")


def copy_clone(host: Host) -> None:
    """Copy the files of the clone to the host, owned by the developer."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    present = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]
    packed = subprocess.run(["tar", "-cz", *present], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    variables: dict[str, Any] = host.ansible.get_variables()  # type: ignore[attr-defined]  # testinfra types its modules as one
    key = variables.get("ansible_private_key_file") or variables["ansible_ssh_private_key_file"]  # by Molecule, or tools.hosts
    ssh = ["ssh", "-i", key, *variables["ansible_ssh_common_args"].split()]
    unpack = f"mkdir {CLONE} && tar -xz -C {CLONE} && chown -R ann:ann {HOME} && chmod 0700 {HOME}"
    subprocess.run([*ssh, f"root@{address(host)}", unpack], input=packed, check=True, timeout=60)


def provision(host: Host, *options: str) -> tuple[int, str]:
    """Run site.yml on the machine itself; return its exit status and its output."""
    command = f"cd {CLONE} && ANSIBLE_NOCOLOR=1 timeout 250 {HOME}/venv/bin/ansible-playbook site.yml -i inventories/dev"
    completed = host.run(" ".join([command, *options, "2>&1"]))
    return completed.rc, completed.stdout


class Machine(NamedTuple):
    """The developer's machine, and the output of site.yml with an inaccessible and with an accessible home directory."""

    host: Host
    rejection: str
    output: str


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Provision the machine with its own Ansible and return it; remove the apps after the module."""
    [host] = hosts("lock").values()
    pin = next(line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line.startswith("ansible-core=="))
    host.check_output("useradd --create-home ann")
    copy_clone(host)
    host.check_output("apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install python3-venv")
    host.check_output(f"python3 -m venv {HOME}/venv && timeout 200 {HOME}/venv/bin/pip install -q {pin.split()[0]}")
    status, rejection = provision(host)
    assert status != 0
    host.check_output(f"chmod o+x {HOME}")
    status, output = provision(host)
    assert status == 0, output[-3000:]
    yield Machine(host, rejection, output)
    host.check_output(f"cd {CLONE} && echo 'tornado_apps: {{}}' > inventories/dev/group_vars/all.yml")
    names = json.dumps({"app_names": APPS})
    remove = f"{HOME}/venv/bin/ansible-playbook playbooks/remove.yml -i inventories/dev -e app=all -e"
    host.check_output(f"cd {CLONE} && {remove} %s", names)
    host.check_output("userdel --remove ann")


@pytest.fixture
def site(machine: Machine) -> Site:
    return Site(address(machine.host))


def edit(host: Host, path: str, old: str, new: str) -> None:
    """Replace a text in a file of the clone by renaming a new file over it, like an editor.

    The pause lets a new process record the previous state of the file, which Tornado checks every half second.
    """
    time.sleep(1)
    host.check_output(
        "python3 -c %s %s %s %s",
        "import pathlib, sys; path = pathlib.Path(sys.argv[1]); text = path.read_text(); assert sys.argv[2] in text; "
        "new = path.with_name('.new'); new.write_text(text.replace(sys.argv[2], sys.argv[3], 1)); new.rename(path)",
        f"{CLONE}/files/{path}",
        old,
        new,
    )


def test_unreadable_directory_is_reported_with_a_remedy(machine: Machine) -> None:
    assert (
        f"tornado_apps.sample.source.directory: user sample, which the app runs as, cannot read {CLONE}/files/sample_app: "
        f"{HOME} denies access; try setfacl -m u:sample:x {HOME}, or chmod o+x {HOME}"
    ) in machine.rejection


def test_each_app_is_one_process_in_its_source_directory(machine: Machine) -> None:
    assert sorted(RELEASED.findall(machine.output)) == sorted(APPS)
    for app in APPS:
        [pid] = processes(machine.host, app).values()
        assert machine.host.check_output("readlink /proc/%s/cwd", str(pid)).startswith(f"{CLONE}/files/")
        assert machine.host.check_output("find %s/files -not -user ann", CLONE) == "", "all files must be owned by the developer"


def test_second_run_changes_nothing(machine: Machine) -> None:
    status, output = provision(machine.host)
    assert status == 0
    assert "changed=0 " in output, output


def test_changed_code_is_reloaded(machine: Machine, site: Site) -> None:
    before = processes(machine.host, "reporting_app")
    assert site.get("/healthz").json["status"] == "ok"
    edit(machine.host, "reporting_app/reporting_app/web.py", '"status": "ok"', '"status": "fine"')
    # A request that meets the reload may get 502.
    eventually(lambda: '"fine"' in site.get("/healthz").body.decode(), 15)
    edit(machine.host, "reporting_app/reporting_app/templates/runs.html", "in total", "altogether")
    eventually(lambda: b"3 altogether" in site.get("/").body, 15)
    assert processes(machine.host, "reporting_app") == before, "supervisord must not restart it"


def test_changed_configuration_is_reloaded(machine: Machine, site: Site) -> None:
    assert site.get("/api/runs").json["total"] == 3
    edit(machine.host, "reporting_app/reporting_app/config.toml", "Sequencing runs", "All of them")
    edit(machine.host, "rest_api/rest_api/config.toml", "page_size = 20", "page_size = 1")
    eventually(lambda: b"<title>All of them</title>" in site.get("/").body, 15)
    eventually(lambda: (answer := site.get("/api/runs")).status == 200 and len(answer.json["runs"]) == 1, 15)


def test_requests_wait_until_broken_code_is_fixed(machine: Machine, site: Site) -> None:
    log = machine.host.check_output("ls /var/log/rest_api/*-0.log").split()[-1]
    edit(machine.host, "rest_api/rest_api/web.py", "def index(", "def index((")
    eventually(lambda: "waiting for a change" in machine.host.check_output("tail -n 20 %s", log), 15)
    assert "SyntaxError" in machine.host.check_output("tail -n 20 %s", log)
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(site.get, "/api/")
        time.sleep(1)
        assert not response.done()
        edit(machine.host, "rest_api/rest_api/web.py", "def index((", "def index(")
        assert response.result(timeout=30).status == 200


def test_websockets_are_closed_by_a_reload_and_reconnect(machine: Machine) -> None:
    site = Site(address(machine.host), "sample.localhost")
    ready = threading.Event()

    async def until_closed(connection: WebSocketClientConnection) -> Any:
        await connection.write_message("before")
        first = await connection.read_message()
        ready.set()
        return [first, await connection.read_message()]

    async def echo(connection: WebSocketClientConnection) -> Any:
        await connection.write_message("after")
        return await connection.read_message()

    with ThreadPoolExecutor(1) as pool:
        conversation = pool.submit(site.websocket, "/ws", until_closed)
        assert ready.wait(20)
        edit(machine.host, "sample_app/sample_app/web.py", "from __future__", "# changed\nfrom __future__")
        assert conversation.result() == ["before", None], "the reload must close the connection"
    eventually(lambda: site.websocket("/ws", echo) == "after", 15)
