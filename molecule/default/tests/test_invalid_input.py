"""Invalid input is rejected with one clear message, and the host keeps serving."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Site, address, apps, run_site

HOST = "ubuntu24"
testinfra_hosts = [f"ansible://{HOST}"]


@pytest.fixture(autouse=True)
def assert_host_unchanged(host: Host) -> Iterator[None]:
    """Verify that the test leaves the same processes serving, and no leftovers on the host."""
    site = Site(address(host))

    def snapshot() -> tuple[set[int], str, str]:
        pids = {site.get("/whoami").json["pid"] for _ in range(20)}
        listing = host.check_output("ls -A /srv/sample/slots /srv/plain/slots /etc/supervisor/conf.d")
        return (
            pids,
            listing,
            host.check_output("cd /etc && find nginx security sysctl.d systemd -type f | sort | xargs sha256sum"),
        )

    before = snapshot()
    yield
    assert snapshot() == before


def provision(tmp_path: Path, variables: dict[str, Any]) -> tuple[int, str]:
    """Run site.yml on the host with ``variables``; return its exit status and its output with whitespace collapsed."""
    status, output = run_site(HOST, tmp_path, variables)
    return status, re.sub(r"\s+", " ", output)


def test_all_inventory_mistakes_are_reported_together_before_any_change(tmp_path: Path) -> None:
    other = {"source": {"path": "no/such/directory"}, "run": {"app": "a:b"}}
    status, output = provision(
        tmp_path,
        apps(
            sample={"drian": 3, "processes": "many"},
            plain={"domains": ["a.test"]},
            other=other | {"domains": ["a.test"], "port": 8001},
        ),
    )
    assert status != 0
    assert "the inventory has mistakes; nothing was changed" in output
    assert "tornado_apps.sample.drian: unknown key; did you mean drain?" in output
    assert "tornado_apps.sample.processes: must be int or \"auto\"; found 'many'" in output.replace('\\"', '"')
    assert "tornado_apps.other.domains: a.test already belongs to tornado_apps.plain" in output
    assert "changed=0" in output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            apps(other={"source": {"path": "files"}, "run": {"app": "a:b"}, "domains": ["b.test"], "port": 8001}),
            "tornado_apps.other.port: uses ports 8001 to 8004, which overlap with those of plain; change one of them",
        ),
        (
            apps(sample={"open_files": 50_000}),
            "tornado_apps.sample.open_files: must be at most 20000, the limit of this host; found 50000",
        ),
        (apps(sample={"source": {"path": "no/such/app"}}), "tornado_apps.sample.source.path: there is no directory"),
        (apps(sample={"source": {"archive": "galaxy.yml"}}), "galaxy.yml cannot be unpacked: "),
        ({"tornado_app": {}}, "tornado_app: no such variable; did you mean tornado_apps?"),
        (
            {"limits_open_files": "many", "nginx_access_log": "xml", "python_extra_index_urls": {}},
            "value of nginx_access_log must be one of: text, json, got: xml",
        ),
    ],
)
def test_invalid_variables_are_rejected_before_any_change(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    status, output = provision(tmp_path, variables)
    assert status != 0
    assert message in output
    assert "changed=0" in output


def test_unattainable_limit_is_reported_with_requested_and_available_value(tmp_path: Path) -> None:
    status, output = provision(tmp_path, {"limits_open_files": 50_000})
    assert status != 0
    assert "limits_open_files: 50000 exceeds the maximum of this host" in output
    assert "20000" in output
    assert "changed=0" in output


def test_missing_version_is_reported(tmp_path: Path) -> None:
    status, output = provision(tmp_path, apps(plain={"source": {"git": "/srv/plain.bundle", "version": "v9"}}))
    assert status != 0
    assert "tornado_apps.plain.source.version: /srv/plain.bundle has no branch, tag or commit v9" in output


def test_invalid_nginx_snippet_is_reported_with_its_app_and_nginx_error(tmp_path: Path) -> None:
    status, output = provision(tmp_path, apps(plain={"extra": "frobnicate on;"}))
    assert status != 0
    assert "tornado_apps.plain.extra" in output
    assert 'unknown directive "frobnicate"' in output.replace('\\"', '"')


def test_unsupported_distribution_is_rejected(host: Host, tmp_path: Path) -> None:
    host.run_expect([0], "cp -L /etc/os-release /root/os-release && rm /etc/os-release")
    host.run_expect([0], "printf 'ID=fedora\\nVERSION_ID=40\\nPRETTY_NAME=\"Fedora Linux 40\"\\n' > /etc/os-release")
    try:
        status, output = provision(tmp_path, {})
    finally:
        host.run_expect([0], "ln -sf ../usr/lib/os-release /etc/os-release")
    assert status != 0
    assert "runs Fedora Linux 40; funnel.tornado supports Debian 12 and 13" in output
    assert "changed=0" in output


def test_check_mode_reports_changes_without_making_them(host: Host, tmp_path: Path) -> None:
    def check(variables: dict[str, Any]) -> str:
        status, output = run_site(HOST, tmp_path, variables, "--check", "--diff")
        assert status == 0, output
        return output

    assert "changed=0" in check({})
    before = host.check_output("ls -A /srv/sample/releases /srv/plain/releases")
    output = check(apps(sample={"env": {"SAMPLE_THEME": "dark"}}, plain={"upload_size": "1m"}))
    assert "changed=0" not in output
    assert "release of sample" in output
    assert "client_max_body_size 1m;" in output
    assert "not-for-others" not in output
    assert host.check_output("ls -A /srv/sample/releases /srv/plain/releases") == before


def test_site_reports_no_change_after_failed_runs(tmp_path: Path) -> None:
    status, output = provision(tmp_path, {})
    assert status == 0, output
    assert "changed=0" in output
