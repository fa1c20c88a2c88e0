"""A host with nginx.org's package beside Caddy, a unit of its own for nginx, another supervisord, and an index in pip.conf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from testinfra.host import Host

from tests.support.remote import Site, address, expect_success, run_site

HOST = "vendor"
testinfra_hosts = [f"ansible://{HOST}"]

WEB = """
import inhouse
import tornado.web

class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write(inhouse.GREETING)

def make_app():
    return tornado.web.Application([("/", Handler)])
"""

#: What nginx serves at the names localhost, which also has an address of IPv6, and private.test, and a program of supervisord.
SERVED = "Welcome to nginx!\nprivate\nWelcome to nginx!\n"


def served(host: Host) -> str:
    return host.run(
        "curl -s http://localhost/; curl -s -H 'Host: private.test' http://localhost/; curl -s http://127.0.0.1:8098/"
    ).stdout


def test_sites_of_the_vendors_package_stay_served(host: Host, tmp_path: Path) -> None:
    host.run_expect([0], Path(__file__).with_name("vendor.sh").read_text())
    source = tmp_path / "app"
    source.mkdir()
    (source / "web.py").write_text(WEB)
    (source / "requirements.txt").write_text("tornado==6.6.1\ninhouse==1.0\n")
    keys = {"run": {"app": "web:make_app"}, "domains": ["shop.test"], "processes": 1, "drain": 1}
    variables: dict[str, Any] = {"tornado_apps": {"shop": {"source": {"path": str(source)}, **keys}}}
    variables |= {"ansible_user": "ann", "ansible_become": True, "ansible_pipelining": False}

    status, output = run_site(HOST, tmp_path, {**variables, "ansible_pipelining": True})
    assert status != 0
    assert "remove requiretty from sudoers, or set ANSIBLE_PIPELINING=false" in output

    status, output = run_site(HOST, tmp_path, variables)
    assert status != 0
    assert "changed=0" in output
    assert re.search(r"nginx_listen: port 80 is in use by caddy \(pid \d+, caddy.service\)", output)
    assert "nginx.conf:2: nginx runs as nginx, but the sockets of apps are for www-data" in output
    host.run_expect([0], "systemctl disable --now caddy && systemctl start nginx")
    assert served(host) == SERVED

    host.run_expect([0], "chmod -R o+rX /srv/www/private && sed -i 's/^user .*/user www-data;/' /etc/nginx/nginx.conf")
    output = re.sub(r"\s+", " ", expect_success(run_site(HOST, tmp_path, variables)))
    assert f"{HOST}: nginx does not listen on [::]:80, because its other sites listen at that port by IPv4 only" in output
    assert f"{HOST}: supervisorctl controls the supervisord of /etc/supervisord.conf" in output
    assert served(host) == SERVED
    assert Site(address(host), "shop.test").get("/").body == b"in-house"
    assert "changed=0" in expect_success(run_site(HOST, tmp_path, variables))
    host.run_expect([0], "systemctl restart nginx supervisor")  # as after a reboot, with the sandbox of the units
    assert served(host) == SERVED
