"""HAProxy instead of nginx as the reverse proxy, connected directly to the sockets of the live slot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support import remote
from tests.support.load import Load, table
from tests.support.remote import APP_GROUP, VARIABLES, Site, address, deploy, expect_success, extra_vars, run_playbook, run_site

HOST = "debian13"
testinfra_hosts = [f"ansible://{HOST}"]


def variables(**keys: Any) -> dict[str, Any]:
    """Return the variables that make HAProxy serve the sample app without its static files, and another app."""
    entry = {key: value for key, value in VARIABLES["tornado_apps"]["sample"].items() if key != "static"}
    other = entry | {"domains": ["other.test"], "processes": 1, "drain": 1}
    return {"app_proxy": "haproxy", "tornado_apps": {"sample": entry | keys, "other": other}}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """Serve the app with HAProxy; restore nginx, and the app on ports that it does not serve, after the module."""
    directory, found = tmp_path_factory.mktemp("haproxy"), remote.hosts()
    remaining = {"tornado_apps": variables()["tornado_apps"]}
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=plain", *extra_vars(directory, remaining)))
    for host in found.values():
        host.check_output("systemctl stop nginx")
    try:
        expect_success(run_site(APP_GROUP, directory, variables()))
        yield found
    finally:
        for host in found.values():
            host.check_output("systemctl disable haproxy && systemctl stop haproxy.socket && systemctl start nginx")
        expect_success(run_site(APP_GROUP, directory, {}))


@pytest.fixture
def site(hosts: dict[str, Host]) -> Site:
    return Site(address(hosts[HOST]))


def test_deploys_behind_haproxy_lose_no_request(site: Site, tmp_path: Path) -> None:
    seen = site.get("/whoami", X_Forwarded_For="192.0.2.1", X_Real_IP="192.0.2.1", X_Forwarded_Proto="https", X_Scheme="https")
    assert (seen.json["remote_ip"], seen.json["protocol"]) == (site.client_address, "http")
    with Load(site.address, websockets=4) as load:
        for theme in ("dark", "light"):
            expect_success(deploy("sample", HOST, tmp_path, variables(env={"SAMPLE_THEME": theme})))
    result = load.result
    shown = "\n".join(table({"deploys behind HAProxy": result}))
    assert result.requests > 100, shown
    assert result.posted > 10, shown
    assert result.messages > 10, shown
    assert (result.failed, result.lost, result.doubled, result.cut) == (0, 0, 0, 0), shown
    assert 'data-theme="light"' in site.get("/").body.decode()
    assert "changed=0" in expect_success(run_site(HOST, tmp_path, variables(env={"SAMPLE_THEME": "light"})))


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_haproxy_user_cannot_redirect_writes_of_root(hosts: dict[str, Host], name: str) -> None:
    """The user can plant links in the package's directory, which root ignores, but not in the directory that root writes to."""
    host = hosts[name]
    assert Site(address(host)).get("/healthz").status == 200
    as_haproxy = "runuser -u haproxy -- sh -c %s"
    for file in ("state", "state.new", "admin.sock"):
        host.check_output(as_haproxy, f"ln -sf /etc/cron.d/planted-{file} /run/haproxy/{file}")
        denied = host.run(as_haproxy, f"ln -sf /etc/cron.d/planted-{file} /run/haproxy-funnel/{file}")
        assert denied.rc != 0
        assert "Permission denied" in denied.stderr
    host.check_output("rm -f /run/haproxy-funnel/state && systemctl reload haproxy")
    assert "sample" in host.check_output("cat /run/haproxy-funnel/state"), "root writes the state at a reload"
    assert host.run("ls /etc/cron.d/planted-*").stdout == ""
    assert host.check_output("stat --format '%U %a' /run/haproxy-funnel") == "root 700"
    assert host.check_output("find /run/haproxy-funnel ! -user root") == ""
    host.check_output("find /run/haproxy -type l -delete")


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_spoofed_proxy_headers_and_ambiguous_paths_are_rejected(hosts: dict[str, Host], name: str) -> None:
    site = Site(address(hosts[name]))
    assert site.get("/headers", X_Kept="kept").json["X-Kept"] == "kept"
    names = ("X_Forwarded_Host", "X_Forwarded_Prefix", "X_Real_IP", "X-Forwarded-Protocol", "X-Original-URL")
    spoofed = "".join(f"{name}: evil\r\n" for name in names)
    with site.connect() as connection, connection.makefile("rb") as answer:
        connection.sendall(f"GET /headers HTTP/1.1\r\nHost: x\r\n{spoofed}Connection: close\r\n\r\n".encode())
        response = answer.read()
    assert b" 200 " in response
    assert b"evil" not in response
    for path in ("/whoami%0a", "/%00", "/a/..;/whoami", "/whoami%7f"):
        assert site.get(path).status == 400
    assert site.get("/whoami?a=%0a").status == 200


def test_keys_that_require_nginx_are_rejected_before_any_change(site: Site, tmp_path: Path) -> None:
    status, output = run_site(
        HOST, tmp_path, variables(static={"path": "sample_app/static"}, paths={"/live/": {"buffering": False}})
    )
    assert status != 0
    for key in ("static", "paths"):
        assert f"tornado_apps.sample.{key}: requires nginx, but app_proxy selects HAProxy" in " ".join(output.split())
    assert "changed=0" in output
    assert site.get("/whoami").status == 200


def test_app_is_removed_from_haproxy_alone(site: Site, host: Host, tmp_path: Path) -> None:
    remaining = variables()
    del remaining["tornado_apps"]["other"]
    other, release = Site(site.address, "other.test"), site.get("/whoami").json["release"]
    assert other.get("/whoami").json["release"] != release
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=other", *extra_vars(tmp_path, remaining)))
    assert other.get("/whoami").json["release"] == release, "the app without domains serves all other names"
    assert host.run("test -e /srv/other").rc != 0
