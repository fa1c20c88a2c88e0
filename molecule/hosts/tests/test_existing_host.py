"""A host with a past: what it served stays served, and what cannot stay is refused before anything changes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from testinfra.host import Host

from tests.support.remote import ROOT, Site, address, deploy, eventually, expect_success, run_playbook, run_site

HOST = "web"
testinfra_hosts = [f"ansible://{HOST}"]

#: What the host serves before the collection: names of nginx sites, with the answer; any other name gets that of the default.
SERVED = {
    "old.test": b"old\n",
    "app.example.test": b"example",
    "confd.test": b"mapped",
    "inline.test": b"inline",
    "unknown.test": b"default",
}

#: The connection of an administrator who is not root.
ANN = {"ansible_user": "ann", "ansible_become": True, "ansible_become_password": "secret"}

WEB = """
import os
import tornado.web

class Handler(tornado.web.RequestHandler):
    def get(self):
        variables = [os.environ["GREETING"], os.environ["KEY"]]
        self.write(" ".join([*variables, *sorted(os.listdir("data")), open("data/größe.txt").read()]))

def make_app():
    return tornado.web.Application([("/", Handler)])
"""

#: The page of the app with the variables of :func:`entries`.
PAGE = "grüße schlüssel größe.txt übrig süß"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("app")
    (directory / "web.py").write_text(WEB, encoding="utf-8")
    (directory / "requirements.txt").write_text("tornado==6.6.1\n")
    (directory / "data").mkdir()
    (directory / "data/größe.txt").write_text("süß", encoding="utf-8")
    return str(directory)


def entries(source: str, **domains: str) -> dict[str, Any]:
    """Return ``tornado_apps`` with an app for each of ``domains``."""
    keys = {"source": {"path": source}, "run": {"app": "web:make_app"}, "processes": 1, "drain": 1}
    keys |= {"env": {"GREETING": "grüße"}, "secrets": {"KEY": "schlüssel"}, "shared": ["data"], "headers": {"X-Place": "Köln"}}
    keys |= {"hooks": {"before_start": "touch data/übrig"}, "maintenance": {"page": "<p>Später</p>"}}
    return {"tornado_apps": {name: {**keys, "domains": [domain]} for name, domain in domains.items()}}


def refused(finished: tuple[int, str]) -> str:
    """Return the output of a run that was refused before anything changed, with collapsed white space."""
    status, output = finished
    assert status != 0, output
    assert "changed=0" in output
    return re.sub(r"\s+", " ", output)


def served(host: Host) -> dict[str, bytes]:
    return {name: Site(address(host), name).get("/").body for name in SERVED}


def ask(host: Host, port: int) -> str:
    return host.run(f"curl -s http://127.0.0.1:{port}/").stdout


@pytest.fixture
def apache(host: Host) -> Iterator[None]:
    """Let another program listen on port 80."""
    host.run_expect([0], "systemd-run --quiet --unit=apache2 python3 -m http.server 80 --directory /var/empty")
    eventually(lambda: host.run("grep -q :0050 /proc/net/tcp").rc == 0)
    yield
    host.run_expect([0], "systemctl stop apache2")


@pytest.mark.usefixtures("apache")
def test_what_the_apps_cannot_have_is_refused_before_anything_is_installed(host: Host, tmp_path: Path, source: str) -> None:
    host.run_expect([0], "groupadd shop && systemctl mask supervisor")
    output = refused(run_site(HOST, tmp_path, entries(source, shop="shop.test")))
    assert re.search(r"nginx_listen: port 80 is in use by python3 \(pid \d+, apache2.service\)", output)
    assert "systemctl disable --now apache2.service" in output
    assert "tornado_apps.shop: the host already has a user, a group or a directory of that name" in output
    assert "supervisor.service is masked, and so cannot start; systemctl unmask supervisor.service" in output
    balancer = cast("Any", host.ansible)("funnel.tornado.host_check", 'listen=\'{"haproxy_listen": ["80"]}\' service=haproxy')
    assert re.search(r"haproxy_listen: port 80 is in use by python3 \(pid \d+, apache2.service\)", balancer["msg"])
    host.run_expect([0], "groupdel shop && systemctl unmask supervisor")
    host.run_expect([1], "test -e /usr/sbin/nginx")


def test_a_file_system_that_cannot_hold_apps_is_refused(host: Host, tmp_path: Path, source: str) -> None:
    host.run_expect([0], "mount -t tmpfs -o noexec srv /srv")
    output = refused(run_site(HOST, tmp_path, entries(source, shop="shop.test")))
    balancer = cast("Any", host.ansible)("funnel.tornado.host_check", 'listen=\'{"haproxy_listen": ["80"]}\' service=haproxy')
    host.run_expect([0], "umount /srv")
    assert balancer["open_files"], "a load balancer has no apps"
    assert "/srv is on a file system that is mounted with noexec, and apps are started there: mount it with exec" in output


def test_a_connection_without_root_is_refused(host: Host, tmp_path: Path, source: str) -> None:
    host.run_expect([0], "useradd --create-home ann && cp -r /root/.ssh /home/ann/ && chown -R ann: /home/ann/.ssh")
    output = refused(run_site(HOST, tmp_path, entries(source, shop="shop.test"), "-e", "ansible_user=ann"))
    assert "must run as root, but the tasks run as ann: set ansible_become: true" in output


def test_what_the_host_serves_stays_served(host: Host, tmp_path: Path, source: str) -> None:
    host.run_expect([0], Path(__file__).with_name("past.sh").read_text())
    original = host.check_output("cp -r /etc/nginx /etc/supervisor /root; cat /etc/nginx/nginx.conf")
    assert served(host) == SERVED

    variables = entries(source, shop="shop.test") | ANN
    output = expect_success(run_site(HOST, tmp_path, variables))
    assert "supervisord runs mine without the privileges that apps do not need" in re.sub(r"\s+", " ", output)
    assert "these lines of nginx.conf are replaced: worker_connections 999" in re.sub(r"\s+", " ", output)
    assert served(host) == SERVED
    response = Site(address(host), "shop.test").get("/")
    assert response.body.decode() == PAGE
    assert response.headers["x-place"].encode("latin-1").decode() == "Köln"
    host.run_expect([0], r"printf 'Sp\303\244ter' | grep -qFf - /etc/nginx/funnel/app.shop.html")
    [copy] = host.check_output("ls /var/backups/funnel/etc/nginx/").splitlines()
    assert host.check_output(f"cat /var/backups/funnel/etc/nginx/{copy}") == original
    host.run_expect(
        [0], "nginx -T 2>/dev/null | grep 'keepalive_timeout 33s' && ! nginx -T 2>/dev/null | grep 'keepalive_timeout 65'"
    )
    assert "changed=0" in expect_success(run_site(HOST, tmp_path, variables))

    host.run_expect([0], "systemctl restart nginx supervisor")  # as after a reboot, with the sandbox of the units
    assert served(host) == SERVED
    for port in (8090, 3307):  # the program, and nginx's stream to it
        assert eventually(partial(ask, host, port)) == "old\n"
    host.run_expect([0], "grep --null-data --line-regexp OLD=kept /proc/$(supervisorctl pid mine)/environ")
    host.run_expect([0], "test -s /var/log/nginx/old.log")
    eventually(lambda: Site(address(host), "shop.test").get("/").status == 200)


def test_deleted_users_and_damaged_directories_are_repaired(host: Host, tmp_path: Path, source: str) -> None:
    look = "id shop; id _shop; stat --format '%n %F %a %U:%G' /srv/shop /srv/shop/* /srv/shop/*/* /var/log/shop /etc/nginx/funnel"
    before = host.check_output(look)
    for command in (
        "userdel --force shop; userdel --force _shop; ! id shop && ! getent group _shop",
        "chmod 777 /srv/shop /var/log/shop /etc/nginx/funnel",
        "chown www-data:www-data /srv/shop/slots /srv/shop/releases /etc/nginx/funnel",
        "chmod 700 /srv/shop/environments /srv/shop/shared",
    ):
        host.run_expect([0], command)
    expect_success(run_site(HOST, tmp_path, entries(source, shop="shop.test")))
    assert host.check_output(look) == before
    assert Site(address(host), "shop.test").get("/").body.decode() == PAGE


def test_names_and_programs_of_others_are_refused(host: Host, tmp_path: Path, source: str) -> None:
    host.run_expect([0], "printf '[program:blog-a]\\ncommand=cat\\n' > /etc/supervisor/conf.d/other.conf")
    text = "upstream blog { server 127.0.0.1:8090; }\\nopen_file_cache max=9;\\n"
    host.run_expect(
        [0], f"sed -i '/open_file_cache/d' /etc/nginx/nginx.conf; printf '{text}' > /etc/nginx/conf.d/other.conf; nginx -t"
    )
    variables = entries(source, shop="old.test", blog="inline.test")
    variables["tornado_apps"]["site"] = {**variables["tornado_apps"]["shop"], "domains": []}
    output = refused(run_site(HOST, tmp_path, variables))
    host.run_expect([0], "rm /etc/supervisor/conf.d/other.conf /etc/nginx/conf.d/other.conf")
    assert "/etc/nginx/conf.d/other.conf:2: open_file_cache max=9 would apply to all apps" in output
    assert "tornado_apps.blog: /etc/nginx/conf.d/other.conf:1 has an upstream or a zone of this name; rename it" in output
    assert "tornado_apps.shop.domains: old.test is already served by /etc/nginx/sites-enabled/old.test:1" in output
    assert "tornado_apps.blog.domains: inline.test is already served by /etc/nginx/funnel.http.conf:" in output
    assert (
        "tornado_apps.site.domains: is missing, and /etc/nginx/sites-enabled/default:1 already serves all other names" in output
    )
    assert "tornado_apps.blog: /etc/supervisor/conf.d/other.conf has a program blog-a" in output
    assert served(host) == SERVED


def test_an_app_outside_the_inventory_stays_served_until_it_is_removed(host: Host, tmp_path: Path, source: str) -> None:
    shop, blog = Site(address(host), "shop.test"), Site(address(host), "blog.test")
    other = entries(source, blog="blog.test")
    warning = f"tornado_apps has no app shop, which is live on {HOST}; it stays as it is; run remove.yml -e app=shop to remove it"
    for finished in (deploy("blog", HOST, tmp_path, other), run_site(HOST, tmp_path, other)):
        assert warning in re.sub(r"\s+", " ", expect_success(finished))
        assert (shop.get("/").status, blog.get("/").status) == (200, 200)

    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=shop", "-e", '{"tornado_apps": {}}'))
    assert shop.get("/").body == SERVED["unknown.test"]
    assert blog.get("/").status == 200
    assert served(host) == SERVED


def test_status_names_what_would_not_survive_a_reboot(host: Host) -> None:
    for path, text in {
        "/etc/sysctl.d/99-x.conf": "net.core.somaxconn=256",
        "/etc/systemd/system/supervisor.service.d/90-x.conf": "[Service]\\nLimitNOFILE=999",
        "/etc/nginx/conf.d/x.conf": "bogus on;",
    }.items():
        host.run_expect([0], f"printf '{text}\\n' > {path}")
    host.run_expect([0], "systemctl daemon-reload; systemctl disable --quiet supervisor")
    status, output = run_playbook("playbooks/status.yml", HOST)
    found = re.sub(r"\s+", " ", output)
    assert status != 0
    assert "will not start after a reboot: unknown directive" in found
    assert "/etc/nginx/conf.d/x.conf:1" in found
    assert "/etc/sysctl.d/99-x.conf overrides /etc/sysctl.d/50-funnel.conf" in found
    assert "/etc/systemd/system/supervisor.service.d/90-x.conf sets a limit of 999 open files instead of 16384" in found
    assert "supervisor: is not enabled, and will not start after a reboot" in found
    problems = cast("Any", host.ansible)("funnel.tornado.status", f"controller_time={time.time() - 3600}")["problems"]
    assert re.search(r"its clock is 36\d\d s ahead of that of the controller; start a time service", "\n".join(problems))
    assert "its clock is" not in found
    status, output = run_playbook("playbooks/reboot.yml", HOST)
    assert status != 0
    assert "correct this first, as a reboot would stop it" in re.sub(r"\s+", " ", output)


def test_the_documented_commands_return_to_the_previous_configuration(host: Host) -> None:
    host.run_expect([0], "rm /etc/nginx/conf.d/x.conf /etc/sysctl.d/99-x.conf /etc/systemd/system/supervisor.service.d/90-x.conf")
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=blog", "-e", '{"tornado_apps": {}}'))
    page = (ROOT / "docs/operations/existing-hosts.md").read_text()
    [commands] = re.findall(r"^## Return to the previous configuration$.*?^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    host.run_expect([0], "bash -ec %s", commands)
    assert served(host) == SERVED
    assert eventually(partial(ask, host, 8090)) == "old\n"
    host.run_expect([0], "for name in nginx supervisor; do diff --recursive /root/$name /etc/$name || exit; done")
    assert host.check_output("systemctl show nginx supervisor --property DropInPaths").split() == ["DropInPaths="] * 2
