"""HAProxy in nginx's place, straight to the sockets of the slot that is live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Load, table
from tests.support.remote import VARIABLES, Site, address, deploy, done, run_site

HOST = "debian13"
testinfra_hosts = [f"ansible://{HOST}"]


def variables(**keys: Any) -> dict[str, Any]:
    """Return the variables under which HAProxy leads to the sample app, of whose static files it has none."""
    entry = {key: value for key, value in VARIABLES["tornado_apps"]["sample"].items() if key != "static"}
    return {"app_proxy": "haproxy", "tornado_apps": {"sample": entry | keys}}


@pytest.fixture(scope="module")
def site(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Have HAProxy serve; afterwards nginx does so again."""
    directory = tmp_path_factory.mktemp("haproxy")
    host.check_output("systemctl stop nginx")
    try:
        done(run_site(HOST, directory, variables()))
        yield Site(address(host))
    finally:
        host.check_output("systemctl disable haproxy && systemctl stop haproxy.socket && systemctl start nginx")
        done(run_site(HOST, directory, {}))


def test_new_code_behind_haproxy(site: Site, tmp_path: Path) -> None:
    told = site.get("/whoami", X_Forwarded_For="192.0.2.1", X_Real_IP="192.0.2.1", X_Forwarded_Proto="https", X_Scheme="https")
    assert (told.json["remote_ip"], told.json["protocol"]) == (site.client_address, "http")
    with Load(site.address, websockets=4) as load:
        for theme in ("dark", "light"):
            done(deploy("sample", HOST, tmp_path, variables(env={"SAMPLE_THEME": theme})))
    result = load.result
    shown = "\n".join(table({"deploys behind HAProxy": result}))
    assert result.requests > 100, shown
    assert result.posted > 10, shown
    assert result.messages > 10, shown
    assert (result.failed, result.lost, result.doubled, result.cut) == (0, 0, 0, 0), shown
    assert 'data-theme="light"' in site.get("/").body.decode()
    assert "changed=0" in done(run_site(HOST, tmp_path, variables(env={"SAMPLE_THEME": "light"})))


def test_the_user_of_haproxy_has_root_write_nowhere(site: Site, host: Host) -> None:
    """What it can put into the package's directory is of no use, and into the one that root writes to it can put nothing."""
    assert site.get("/healthz").status == 200
    as_haproxy = "runuser -u haproxy -- sh -c %s"
    for name in ("state", "state.new", "admin.sock"):
        host.check_output(as_haproxy, f"ln -sf /etc/cron.d/planted-{name} /run/haproxy/{name}")
        refused = host.run(as_haproxy, f"ln -sf /etc/cron.d/planted-{name} /run/haproxy-funnel/{name}")
        assert refused.rc != 0
        assert "Permission denied" in refused.stderr
    host.check_output("rm -f /run/haproxy-funnel/state && systemctl reload haproxy")
    assert "sample" in host.check_output("cat /run/haproxy-funnel/state"), "root writes at a reload"
    assert host.run("ls /etc/cron.d/planted-*").stdout == ""
    assert host.check_output("stat --format '%U %a' /run/haproxy-funnel") == "root 700"
    assert host.check_output("find /run/haproxy-funnel ! -user root") == ""
    host.check_output("find /run/haproxy -type l -delete")


def test_a_client_speaks_in_no_proxy_s_name_and_hides_no_path(site: Site) -> None:
    assert site.get("/headers", X_Kept="kept").json["X-Kept"] == "kept"
    names = ("X_Forwarded_Host", "X_Forwarded_Prefix", "X_Real_IP", "X-Forwarded-Protocol", "X-Original-URL")
    lies = "".join(f"{name}: evil\r\n" for name in names)
    with site.connect() as connection, connection.makefile("rb") as answer:
        connection.sendall(f"GET /headers HTTP/1.1\r\nHost: x\r\n{lies}Connection: close\r\n\r\n".encode())
        arrived = answer.read()
    assert b" 200 " in arrived
    assert b"evil" not in arrived
    for path in ("/whoami%0a", "/%00", "/a/..;/whoami", "/whoami%7f"):
        assert site.get(path).status == 400
    assert site.get("/whoami?a=%0a").status == 200


def test_what_haproxy_cannot_do_is_refused_before_anything_changes(site: Site, tmp_path: Path) -> None:
    status, output = run_site(
        HOST, tmp_path, variables(static={"path": "sample_app/static"}, paths={"/live/": {"buffering": False}})
    )
    assert status != 0
    for key in ("static", "paths"):
        assert f"tornado_apps.sample.{key}: requires nginx, but app_proxy selects HAProxy" in " ".join(output.split())
    assert "changed=0" in output
    assert site.get("/whoami").status == 200
