"""The commands of the troubleshooting guide work on the hosts."""

from __future__ import annotations

from testinfra.host import Host

from tests.support.fleet import Fleet
from tests.support.pages import commands
from tests.support.remote import ROOT


def works(host: Host, command: str) -> bool:
    result = host.run(command)
    no_match = command.startswith("grep") and result.rc == 1 and not result.stderr
    return result.rc == 0 or no_match


def test_documented_commands_work_on_app_hosts_or_balancers(fleet: Fleet) -> None:
    documented = {command.replace("shop", "sample") for command in commands(ROOT / "docs/troubleshooting.md", "sh")}
    assert len(documented) > 20
    candidates = (fleet.hosts["web1"], fleet.balancers["lb1"])
    assert [command for command in sorted(documented) if not any(works(host, command) for host in candidates)] == []
