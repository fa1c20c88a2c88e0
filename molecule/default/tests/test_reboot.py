"""A host resumes service after a reboot without intervention."""

from __future__ import annotations

from testinfra.host import Host

from tests.support.remote import Site, address, eventually, processes

#: Prints an ID that is unique to each boot.
PRINT_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"

testinfra_hosts = ["ansible://app_hosts"]


def test_apps_and_exporters_run_after_reboot(host: Host) -> None:
    site = Site(address(host))
    boot_id = host.check_output(PRINT_BOOT_ID)
    before = site.get("/whoami").json
    host.run("systemctl reboot")
    eventually(lambda: host.check_output(PRINT_BOOT_ID) != boot_id, 60)
    after = eventually(lambda: (response := site.get("/whoami")).status == 200 and response.json, 60)
    assert (after["release"], after["slot"]) == (before["release"], before["slot"])
    eventually(lambda: Site(site.address, "plain.test").get("/").body == b"plain v1\n")
    eventually(lambda: len(processes(host, "sample")) == int(host.check_output("nproc")))
    assert host.check_output("systemctl is-system-running --wait") == "running"
    exporters = " ".join(f"prometheus-{name}-exporter" for name in ("node", "nginx", "tornado"))
    assert host.check_output(f"systemctl is-active {exporters}").split() == ["active"] * 3
