"""Each role works alone, as its README documents."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import testinfra
from testinfra.host import Host

from tests.support.remote import PLAIN_ENV, ROOT, Site, address, eventually, python
from tests.support.upgrades import publish_newer_packages, versions


def get_host(name: str) -> Host:
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"])


def apply(playbook: str) -> int:
    """Run a playbook of this scenario; return the number of changes."""
    command = ["ansible-playbook", str(ROOT / f"molecule/roles/{playbook}.yml"), "-i", os.environ["MOLECULE_INVENTORY_FILE"]]
    completed = subprocess.run(
        command, cwd=ROOT, env=os.environ | PLAIN_ENV, capture_output=True, text=True, check=False, timeout=120
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return int(re.findall(r"changed=(\d+)", completed.stdout)[-1])


def test_python_creates_working_environments() -> None:
    host = get_host("python")
    host.run_expect([0], "uv venv --quiet --clear /tmp/environment")
    host.run_expect([0], "uv pip install --quiet --python /tmp/environment/bin/python tornado==6.6.1")
    assert host.check_output("/tmp/environment/bin/python -c 'import tornado; print(tornado.version)'") == "6.6.1"


def test_limits_apply_to_logins_and_running_services() -> None:
    host = get_host("limits")
    assert host.check_output("su --login root --command 'ulimit -Sn'") == "8192"
    limits = python(
        host,
        """
import json, pathlib, subprocess
show = ["systemctl", "show", "--value", "--property"]
pid = subprocess.check_output([*show, "MainPID", "ssh"], text=True).strip()
rows = pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
print(json.dumps([int(row.split()[3]) for row in rows if row.startswith("Max open files")]))
""",
    )
    assert limits == [8192]
    assert int(host.check_output("cat /proc/sys/net/core/somaxconn")) >= 4096


def test_only_root_and_its_group_control_supervisor() -> None:
    host = get_host("supervisor")
    host.run_expect([0], "id grace || useradd --groups operators --no-create-home grace")
    assert host.check_output("runuser -u grace -- supervisorctl pid").isdigit()
    assert "denied" in host.run("runuser -u nobody -- supervisorctl pid").stdout.lower()


def test_supervisor_runs_program_with_configured_limit() -> None:
    host = get_host("supervisor")
    host.run_expect([0], "printf '[program:nap]\\ncommand=/bin/sleep 1000\\n' > /etc/supervisor/conf.d/nap.conf")
    host.run_expect([0], "supervisorctl update nap")
    eventually(lambda: "RUNNING" in host.run("supervisorctl status nap").stdout)
    limit = host.check_output("grep 'Max open files' /proc/$(supervisorctl pid nap)/limits").split()[3]
    assert limit == "8192"


def test_supervisor_relaxes_only_the_excepted_hardening() -> None:
    """A set-user-ID program gains root, but still cannot mount a file system."""
    host = get_host("supervisor")
    host.check_output('install -m 4755 "$(readlink -f /usr/bin/python3)" /usr/local/bin/helper')
    code = "import ctypes, os; print(os.geteuid(), ctypes.CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, None))"
    program = f'[program:helper]\ncommand=/usr/local/bin/helper -c "{code}"\nuser=nobody\nstartsecs=0\nautorestart=false\n'
    host.check_output("printf %s > /etc/supervisor/conf.d/helper.conf", f"{program}stdout_logfile=/var/tmp/helper.log\n")
    host.check_output("supervisorctl update helper")
    assert eventually(lambda: host.run("cat /var/tmp/helper.log").stdout) == "0 -1\n"
    host.check_output("rm /etc/supervisor/conf.d/helper.conf /usr/local/bin/helper && supervisorctl update helper")


def test_scheduled_security_upgrades_skip_serving_packages() -> None:
    host = get_host("supervisor")
    pids = host.check_output("supervisorctl pid; supervisorctl pid nap")
    packages = ["hostname", "supervisor"]
    before = versions(host, packages)
    publish_newer_packages(host, packages)
    # Processing Debian's full package lists would take half a minute.
    host.check_output("mv /etc/apt/sources.list /opt/newer/ && apt-get update")
    host.check_output("systemctl start apt-daily-upgrade.service")
    host.check_output("mv /opt/newer/sources.list /etc/apt/")
    assert versions(host, packages) == [f"{before[0]}+newer", before[1]]
    assert host.check_output("supervisorctl pid; supervisorctl pid nap") == pids
    assert "supervisor" in host.check_output("apt-get --simulate upgrade | grep ^Inst")


def test_raised_limit_applies_to_running_supervisord() -> None:
    host = get_host("supervisor")

    def state() -> tuple[str, str]:
        pid = host.check_output("supervisorctl pid")
        return pid, host.check_output(f"grep 'Max open files' /proc/{pid}/limits").split()[3]

    pid, before = state()
    assert [apply("raise"), apply("raise")] == [1, 0]
    assert (before, state()) == ("8192", (pid, "12000"))


def test_nginx_proxies_to_an_upstream_for_its_domain_only() -> None:
    host = get_host("nginx")
    host.run_expect([0], "mkdir -p /tmp/www && echo from behind > /tmp/www/index.html")
    server = "python3 -m http.server --directory /tmp/www --bind 127.0.0.1 9000"
    host.run_expect([0], f"systemctl is-active www || systemd-run --unit=www --quiet {server}")
    site = Site(address(host), "files.test")
    response = eventually(lambda: (response := site.get("/")).status == 200 and response)
    assert response.body == b"from behind\n"
    assert response.headers["x-served-by"] == "nginx"
    assert Site(site.address, "other.test").get("/").status == 404


def test_certificates_are_available_to_nginx(tmp_path: Path) -> None:
    host = get_host("nginx")
    (tmp_path / "files.pem").write_text(host.check_output("cat /etc/ssl/funnel/certificates.files.pem"))
    assert Site(address(host), "files.test", https=True, ca=tmp_path / "files.pem").get("/").body == b"from behind\n"


def test_app_serves_requests() -> None:
    host = get_host("app")
    assert Site(address(host)).get("/whoami").json["app"] == "sample"


def test_app_revokes_push_keys_with_the_last_entry() -> None:
    host = get_host("app")
    keys, entries = "/var/lib/funnel/git/.ssh/authorized_keys", "/etc/funnel/push"
    assert "alice" in host.check_output(f"cat {keys}")
    assert host.check_output(f"ls {entries}") == "inbox.json"
    assert apply("revoke") > 0
    assert apply("revoke") == 0
    host.run_expect([1], f"test -e {keys}")
    assert host.check_output(f"ls {entries}") == ""
    assert Site(address(host)).get("/whoami").json["app"] == "sample"  # other apps stay
