"""Drift: site.yml detects manual changes on a host and restores the desired state."""

from __future__ import annotations

import re
from pathlib import Path

from testinfra.host import Host

from tests.support.remote import Site, address, expect_success, processes, run_site

HOST = "ubuntu26"

testinfra_hosts = [f"ansible://{HOST}"]

#: An nginx site that belongs to no app.
FOREIGN_SITE = "server { listen 80; server_name foreign.test; return 200 foreign; }"

#: A path that nginx rejects itself.
REJECTED_PATH = "/.."

SUPERVISORD = "$(systemctl show --property MainPID --value supervisor)"


def tasks(output: str) -> dict[str, str]:
    """Return the output of each task by its role and name."""
    parts = [part.split("]", 1) for part in re.split(r"^TASK \[", output, flags=re.MULTILINE)[1:]]
    return dict(parts)


def changed_tasks(tmp_path: Path) -> list[str]:
    """Run site.yml and return the names of the tasks that reported a change."""
    found = tasks(expect_success(run_site(HOST, tmp_path, {})))
    return [name for name, text in found.items() if re.search(rf"^changed: \[{HOST}\]", text, flags=re.MULTILINE)]


def test_site_reverts_manual_changes(host: Host, tmp_path: Path) -> None:
    site, foreign = Site(address(host)), Site(address(host), "foreign.test")
    before = processes(host, "sample")
    for command in (
        "sed -i 's/server_tokens off/server_tokens on/' /etc/nginx/nginx.conf",
        f"echo '{FOREIGN_SITE}' > /etc/nginx/funnel/app.foreign.conf && systemctl reload nginx",
        "systemctl disable supervisor",
        f"prlimit --pid {SUPERVISORD} --nofile=1024:",
        "rm /usr/local/bin/uv",
        f"supervisorctl stop {next(iter(before))}",
    ):
        host.run_expect([0], command)
    assert foreign.get().body == b"foreign"
    assert "/" in site.get(REJECTED_PATH).headers["server"]

    changed = changed_tasks(tmp_path)
    assert foreign.get().body != b"foreign"
    assert site.get(REJECTED_PATH).headers["server"] == "nginx"
    host.run_expect([0], "systemctl is-enabled supervisor")
    assert host.check_output(f"prlimit --pid {SUPERVISORD} --nofile --noheadings --output SOFT") == "16384"
    host.run_expect([0], "uv --version")
    assert len(processes(host, "sample")) == len(before)
    assert len(changed) == 6, changed  # the task that applies the sites runs before and after the switch but counts once


def test_site_restores_stopped_service_and_changed_settings(host: Host, tmp_path: Path) -> None:
    for command in (
        "systemctl disable --now nginx",
        "sysctl --quiet --write net.core.somaxconn=128",
        "echo UV_OFFLINE=1 >> /etc/uv/environment",
    ):
        host.run_expect([0], command)

    changed = changed_tasks(tmp_path)
    assert Site(address(host)).get("/whoami").status == 200
    host.run_expect([0], "systemctl is-enabled nginx")
    assert host.check_output("sysctl --values net.core.somaxconn") == "4096"
    assert "OFFLINE" not in host.check_output("cat /etc/uv/environment")
    assert len(changed) == 3, changed
    assert changed_tasks(tmp_path) == []


def test_up_to_date_host_is_queried_once_and_leaves_the_run(tmp_path: Path) -> None:
    found = tasks(expect_success(run_site(HOST, tmp_path, {}, "-vvv")))
    sent = {name: text.count("SSH: EXEC") for name, text in found.items() if "funnel.tornado.metrics" not in name}
    check = "funnel.tornado.app : preflight | Validate the apps and check the host"
    assert {name: count for name, count in sent.items() if count} == {check: 1}
    dispatched = [name for name in sent if re.search(rf"^(ok|skipping): \[{HOST}\]", found[name], flags=re.MULTILINE)]
    after_the_check = dispatched[dispatched.index(check) + 1 :]
    assert after_the_check == [
        "funnel.tornado.app : preflight | Verify that HAProxy supports the options of the apps",
        "strict | Fail if a host is unreachable",
        "Group the reachable hosts",
        "Group the hosts that the tasks below would change",
        "Report what each host serves and how to continue or roll back",
    ]
