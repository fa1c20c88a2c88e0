"""What the status says of a host, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path

from testinfra.host import Host

from tests.remote import Site, address, processes, run_playbook

HOST = "debian13"

testinfra_hosts = [f"ansible://{HOST}"]


def test_the_status_is_right_and_its_exit_status_says_whether_all_is_well(host: Host, tmp_path: Path) -> None:
    site = Site(address(host))

    def look(*options: str) -> tuple[int, str]:
        return run_playbook("playbooks/status.yml", HOST, *options)

    running = processes(host, "sample") | processes(host, "plain")
    status, output = look("-e", f"json={tmp_path}/status.json")
    assert status == 0, output
    found = json.loads((tmp_path / "status.json").read_text())[HOST]["processes"]
    assert {f"{one['app']}-{one['slot']}:{one['process']}": one["pid"] for one in found} == running
    assert {one["open_files_limit"] for one in found} == {16_384, 4_096}
    assert {one["release"] for one in found if one["app"] == "sample"} == {site.get("/whoami").json["release"]}

    name = next(name for name in running if name.startswith("sample"))
    host.run_expect([0], f"supervisorctl stop {name}")
    status, output = look()
    host.run_expect([0], f"supervisorctl start {name}")
    assert status != 0
    assert f"sample: process {name.removeprefix('sample-').replace(':', '/')} is STOPPED, health 0" in output
