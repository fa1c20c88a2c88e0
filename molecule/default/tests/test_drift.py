"""Whatever somebody has changed on a host by hand, the next site.yml finds it and puts it right."""

from __future__ import annotations

import re
from pathlib import Path

from testinfra.host import Host

from tests.support.remote import Site, address, done, processes, run_site

HOST = "debian13"

testinfra_hosts = [f"ansible://{HOST}"]

#: Serves what no app's entry has.
STRANGE_SITE = "server { listen 80; server_name strange.test; return 200 strange; }"

#: What nginx itself answers.
REFUSED = "/.."

SUPERVISORD = "$(systemctl show --property MainPID --value supervisor)"


def tasks(output: str) -> dict[str, str]:
    """Return what each task has printed, by its role and name."""
    parts = [part.split("]", 1) for part in re.split(r"^TASK \[", output, flags=re.MULTILINE)[1:]]
    return dict(parts)


def changed(tmp_path: Path) -> list[str]:
    """Run site.yml; return the names of the tasks that changed something."""
    found = tasks(done(run_site(HOST, tmp_path, {})))
    return [name for name, text in found.items() if re.search(rf"^changed: \[{HOST}\]", text, flags=re.MULTILINE)]


def test_what_was_changed_by_hand_is_found_and_put_right(host: Host, tmp_path: Path) -> None:
    site, strange = Site(address(host)), Site(address(host), "strange.test")
    before = processes(host, "sample")
    for command in (
        "sed -i 's/server_tokens off/server_tokens on/' /etc/nginx/nginx.conf",
        f"echo '{STRANGE_SITE}' > /etc/nginx/sites-enabled/app.strange.conf && systemctl reload nginx",
        "systemctl disable supervisor",
        f"prlimit --pid {SUPERVISORD} --nofile=1024:",
        "rm /usr/local/bin/uv",
        f"supervisorctl stop {next(iter(before))}",
    ):
        host.run_expect([0], command)
    assert strange.get().body == b"strange"
    assert "/" in site.get(REFUSED).headers["server"]

    put_right = changed(tmp_path)
    assert strange.get().body != b"strange"
    assert site.get(REFUSED).headers["server"] == "nginx"
    host.run_expect([0], "systemctl is-enabled supervisor")
    assert host.check_output(f"prlimit --pid {SUPERVISORD} --nofile --noheadings --output SOFT") == "16384"
    host.run_expect([0], "uv --version")
    assert len(processes(host, "sample")) == len(before)
    assert len(put_right) == 6, put_right  # that of the sites, before and after the switch, counts once


def test_what_was_stopped_by_hand_is_found_and_started(host: Host, tmp_path: Path) -> None:
    for command in (
        "systemctl disable --now nginx",
        "sysctl --quiet --write net.core.somaxconn=128",
        "echo UV_OFFLINE=1 >> /etc/uv/environment",
    ):
        host.run_expect([0], command)

    put_right = changed(tmp_path)
    assert Site(address(host)).get("/whoami").status == 200
    host.run_expect([0], "systemctl is-enabled nginx")
    assert host.check_output("sysctl --values net.core.somaxconn") == "4096"
    assert "OFFLINE" not in host.check_output("cat /etc/uv/environment")
    assert len(put_right) == 3, put_right
    assert changed(tmp_path) == []


def test_a_host_that_has_all_as_it_has_to_be_is_asked_once_and_once_for_each_app(tmp_path: Path) -> None:
    found = tasks(done(run_site(HOST, tmp_path, {}, "-vvv")))
    sent = {name: text.count("SSH: EXEC") for name, text in found.items() if "funnel.tornado.metrics" not in name}
    assert {name: count for name, count in sent.items() if count} == {
        "funnel.tornado.app : preflight | Validate the apps and check the host": 1,
        "funnel.tornado.app : build | Build the releases": 2,
    }
