"""What the documentation says to look at on a host is there."""

from __future__ import annotations

from testinfra.host import Host

from tests.support.fleet import Fleet
from tests.support.pages import commands
from tests.support.remote import ROOT


def works(host: Host, command: str) -> bool:
    done = host.run(command)
    found_nothing = command.startswith("grep") and done.rc == 1 and not done.stderr
    return done.rc == 0 or found_nothing


def test_the_commands_on_a_host_work_on_app_hosts_or_on_balancers(fleet: Fleet) -> None:
    wanted = {command.replace("shop", "sample") for command in commands(ROOT / "docs/troubleshooting.md", "sh")}
    assert len(wanted) > 20
    places = (fleet.hosts["web1"], fleet.balancers["lb1"])
    assert [command for command in sorted(wanted) if not any(works(host, command) for host in places)] == []
