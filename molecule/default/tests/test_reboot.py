"""What a host does after a reboot, without anybody's help."""

from __future__ import annotations

from testinfra.host import Host

from tests.support.remote import Site, address, eventually, processes

#: Another one after each boot.
BOOT = "cat /proc/sys/kernel/random/boot_id"

testinfra_hosts = ["ansible://app_hosts"]


def test_everything_serves_again_after_a_reboot(host: Host) -> None:
    site = Site(address(host))
    boot = host.check_output(BOOT)
    before = site.get("/whoami").json
    host.run("systemctl reboot")
    eventually(lambda: host.check_output(BOOT) != boot, 60)
    after = eventually(lambda: (answer := site.get("/whoami")).status == 200 and answer.json, 60)
    assert (after["release"], after["slot"]) == (before["release"], before["slot"])
    eventually(lambda: Site(site.address, "plain.test").get("/").body == b"plain v1\n")
    eventually(lambda: len(processes(host, "sample")) == int(host.check_output("nproc")))
    assert host.check_output("systemctl is-system-running --wait") == "running"
    exporters = " ".join(f"prometheus-{name}-exporter" for name in ("node", "nginx", "tornado"))
    assert host.check_output(f"systemctl is-active {exporters}").split() == ["active"] * 3
