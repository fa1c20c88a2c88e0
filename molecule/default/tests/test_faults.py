"""Mistakes end in one clear message, and the host goes on serving what it served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Site, address, apps, run_site

HOST = "debian12"
testinfra_hosts = [f"ansible://{HOST}"]


@pytest.fixture(autouse=True)
def still_serving(host: Host) -> Iterator[None]:
    """Whatever a test does to it, the host serves the same processes as before, and nothing of the attempt is left."""
    site = Site(address(host))

    def served() -> tuple[set[int], str, str]:
        pids = {site.get("/whoami").json["pid"] for _ in range(20)}
        left = host.check_output("ls -A /srv/sample/slots /srv/plain/slots /etc/supervisor/conf.d")
        return pids, left, host.check_output("cd /etc && find nginx security sysctl.d systemd -type f | sort | xargs sha256sum")

    before = served()
    yield
    assert served() == before


def provision(tmp_path: Path, variables: dict[str, Any]) -> tuple[int, str]:
    """Run site.yml on the host with ``variables``; return its exit status and what it printed, white space folded."""
    status, output = run_site(HOST, tmp_path, variables)
    return status, re.sub(r"\s+", " ", output)


def test_all_mistakes_of_a_file_come_in_one_message_before_anything_changes(tmp_path: Path) -> None:
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
        ({"tornado_app": {}}, "tornado_app: no such variable; did you mean tornado_apps?"),
        (
            {"limits_open_files": "many", "nginx_access_log": "xml", "python_extra_index_urls": {}},
            "value of nginx_access_log must be one of: text, json, got: xml",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    status, output = provision(tmp_path, variables)
    assert status != 0
    assert message in output
    assert "changed=0" in output


def test_a_limit_that_the_host_cannot_give_is_named_with_both_numbers(tmp_path: Path) -> None:
    status, output = provision(tmp_path, {"limits_open_files": 50_000})
    assert status != 0
    assert "limits_open_files: 50000 exceeds the maximum of this host" in output
    assert "20000" in output
    assert "changed=0" in output


def test_a_version_that_is_not_in_the_repository(tmp_path: Path) -> None:
    status, output = provision(tmp_path, apps(plain={"source": {"git": "/srv/plain.bundle", "version": "v9"}}))
    assert status != 0
    assert "tornado_apps.plain.source.version: /srv/plain.bundle has no branch, tag or commit v9" in output


def test_a_broken_snippet_is_named_with_its_app_and_nginxs_own_words(tmp_path: Path) -> None:
    status, output = provision(tmp_path, apps(plain={"extra": "frobnicate on;"}))
    assert status != 0
    assert "tornado_apps.plain.extra" in output
    assert 'unknown directive "frobnicate"' in output.replace('\\"', '"')


def test_a_distribution_that_is_not_supported(host: Host, tmp_path: Path) -> None:
    host.run_expect([0], "cp -L /etc/os-release /root/os-release && rm /etc/os-release")
    host.run_expect([0], "printf 'ID=fedora\\nVERSION_ID=40\\nPRETTY_NAME=\"Fedora Linux 40\"\\n' > /etc/os-release")
    try:
        status, output = provision(tmp_path, {})
    finally:
        host.run_expect([0], "ln -sf ../usr/lib/os-release /etc/os-release")
    assert status != 0
    assert "runs Fedora Linux 40; funnel.tornado supports Debian 12 and 13" in output
    assert "changed=0" in output


def test_check_mode_says_what_would_change_and_changes_nothing(host: Host, tmp_path: Path) -> None:
    def look(variables: dict[str, Any]) -> str:
        status, output = run_site(HOST, tmp_path, variables, "--check", "--diff")
        assert status == 0, output
        return output

    assert "changed=0" in look({})
    before = host.check_output("ls -A /srv/sample/releases /srv/plain/releases")
    output = look(apps(sample={"env": {"SAMPLE_THEME": "dark"}}, plain={"upload_size": "1m"}))
    assert "changed=0" not in output
    assert "release of sample" in output
    assert "client_max_body_size 1m;" in output
    assert "not-for-others" not in output
    assert host.check_output("ls -A /srv/sample/releases /srv/plain/releases") == before


def test_after_all_that_there_is_nothing_to_do(tmp_path: Path) -> None:
    status, output = provision(tmp_path, {})
    assert status == 0, output
    assert "changed=0" in output
