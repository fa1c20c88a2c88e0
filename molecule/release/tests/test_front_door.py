"""A green deploy is served: nginx reaches each process, and the app at its domain; otherwise the deploy is refused or undone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Load, table
from tests.support.remote import Site, address, apps, deploy, eventually, expect_success, extra_vars, processes, run_playbook

HOST = "debian12"
testinfra_hosts = [f"ansible://{HOST}"]

#: Serves requests on a socket that only its own user may use, which is what bind_unix_socket does by default. CHECK is the only
#: healthy path, and requires a header.
WEB = """
import asyncio, os, sys
import tornado.httpserver, tornado.web
from tornado.netutil import bind_unix_socket

class Main(tornado.web.RequestHandler):
    def get(self):
        if self.request.path == "/" + os.environ["CHECK"]:
            self.set_status(401 if self.request.headers.get("X-Check") == "1" else 403, "Who are you?")
        elif self.request.path.startswith("/check"):
            self.set_status(404)
        else:
            self.write(os.environ["CHECK"])

async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/.*", Main)]))
    server.add_socket(bind_unix_socket(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""

#: Programs that listen elsewhere than on {socket}, and the expected message.
ELSEWHERE = {
    "on a port": (
        'import http.server; http.server.HTTPServer(("127.0.0.1", 8499), http.server.SimpleHTTPRequestHandler).serve_forever()',
        r"did not create \S+/0.sock within 3 s \(health.timeout\); it listens on 127.0.0.1:8499: pass it {socket}, or set",
    ),
    "in the background": (
        "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\ntime.sleep(60)",
        r"process 0 does not stay up.*: it continues in the background as process \d+; let it run in the foreground",
    ),
}

#: Asks nginx for the health of the app, as a load balancer does, until the file /run/asking is gone; prints the other answers.
ASK = """
import collections, http.client, json, pathlib, time
answers = collections.Counter()
while pathlib.Path("/run/asking").exists():
    connection = http.client.HTTPConnection("127.0.0.1", timeout=5)
    connection.request("GET", "/.funnel/health/door", headers={"Host": "funnel.invalid"})
    response = connection.getresponse()
    answers[f"{response.status} {response.headers['X-Funnel-Health']}"] += 1
    connection.close()
    time.sleep(0.01)
print(json.dumps(answers))
"""


def entry(source: Path, **keys: Any) -> dict[str, Any]:
    """Return the variables with the app of this module."""
    app: dict[str, Any] = {
        "source": {"path": str(source)},
        "run": {"command": "python web.py {socket}"},
        "domains": ["door.test"],
        "processes": 2,
        "drain": 3,
        "env": {"CHECK": "check1"},
        "health": {"path": "/check1", "status": [401], "headers": {"X-Check": "1"}, "timeout": 20},
    }
    return apps(door=app | keys)


def check(path: str) -> dict[str, Any]:
    """Return the keys that change the code and its health check together."""
    health = {"path": f"/{path}", "status": [401], "headers": {"X-Check": "1"}, "timeout": 20}
    return {"env": {"CHECK": path}, "health": health}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("door")
    (directory / "web.py").write_text(WEB)
    (directory / "requirements.txt").write_text("tornado==6.6.1\n")
    return directory


@pytest.fixture(scope="module")
def site(host: Host, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Deploy the app; remove it after the module."""
    expect_success(deploy("door", HOST, tmp_path_factory.mktemp("vars"), entry(source)))
    yield Site(address(host), "door.test")
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=door"))


def deploy_rejected(directory: Path, variables: dict[str, Any]) -> str:
    """Deploy the app, expect a failure, and return the output with plain whitespace and quotes."""
    status, output = deploy("door", HOST, directory, variables)
    assert status != 0, output
    return re.sub(r"\s+", " ", output.replace("''", "'"))


def test_first_release_that_clients_do_not_reach_is_stopped(host: Host, source: Path, tmp_path: Path) -> None:
    """The next test deploys the same release with another site."""
    output = deploy_rejected(tmp_path, entry(source, extra="return 410;"))
    reason = "http://door.test does not reach the app: nginx answered /.funnel/health/door with 410 Gone"
    stopped = r"release \w+ was live for \d+ s and was stopped, without an earlier release to roll back to: "
    assert re.search(stopped + re.escape(reason), output), output
    assert "door: debian12 nothing (unchanged)" in output
    assert "door-" not in host.run("supervisorctl status").stdout
    assert not host.exists("/srv/door/live")
    run_playbook("playbooks/status.yml", HOST, "-e", f"json={tmp_path}/status.json")
    problems = json.loads((tmp_path / "status.json").read_text())["problems"]
    assert any(re.search(rf"door: has no live release; release \w+: {re.escape(reason)}", problem) for problem in problems)


def test_socket_that_a_program_restricts_to_its_user_is_served_also_after_a_crash(site: Site, host: Host) -> None:
    assert {site.get().body for _ in range(10)} == {b"check1"}
    before = processes(host, "door")
    host.check_output("kill -9 %s", str(next(iter(before.values()))))
    eventually(lambda: len(set(processes(host, "door").values()) - set(before.values())) == 1, 30)
    eventually(lambda: host.check_output("stat --format %a /srv/door/live/run/0.sock") == "660", 10)
    eventually(lambda: {site.get().status for _ in range(20)} == {200}, 10)


def test_health_path_and_site_change_together_with_the_code_and_back(
    site: Site, host: Host, source: Path, tmp_path: Path
) -> None:
    site_keys = {"paths": {"/new/": {"extra": "return 418;"}}, "upload_size": "1k", "headers": {"X-Newer": "1"}}
    newer = entry(source, **site_keys, **check("check2"))
    host.check_output("touch /run/asking; setsid python3 -c %s > /run/asked 2>&1 < /dev/null &", ASK)
    with Load(site.address, host="door.test", get="/", post="", recorded="", poll="", websocket="", pause=0.2) as load:
        expect_success(deploy("door", HOST, tmp_path, newer))
        assert (site.get().body, site.get("/new/").status, site.request("PUT", "/", "x" * 2000).status) == (b"check2", 418, 413)
        expect_success(run_playbook("playbooks/rollback.yml", HOST, "-e", "app=door", *extra_vars(tmp_path, newer)))
        assert_earlier_site(site)
        expect_success(deploy("door", HOST, tmp_path, newer))  # which stays rolled back
        assert_earlier_site(site)
    host.check_output("rm /run/asking")
    answers = json.loads(eventually(lambda: host.run("cat /run/asked").stdout, 20))
    assert answers.keys() == {"401 healthy"}, answers
    assert answers["401 healthy"] > 100
    shown = "\n".join(table({"health path": load.result}))
    assert load.result.requests > 100, shown
    assert load.result.failed == 0, shown


def assert_earlier_site(site: Site) -> None:
    """Verify that the options that belong to the earlier release are in effect, and others of the inventory stay."""
    found = site.get("/new/")
    assert (found.body, found.headers["x-newer"]) == (b"check1", "1")
    assert site.request("PUT", "/", "x" * 2000).status == 405


@pytest.mark.parametrize("place", ELSEWHERE)
def test_program_that_listens_elsewhere_is_refused_before_the_switch(site: Site, tmp_path: Path, place: str) -> None:
    program, message = ELSEWHERE[place]
    (tmp_path / "source").mkdir()
    (tmp_path / "source/web.py").write_text(program)
    (tmp_path / "source/requirements.txt").write_text("tornado==6.6.1\n")
    output = deploy_rejected(tmp_path, entry(tmp_path / "source", processes=1, health={"timeout": 3}))
    assert re.search(message, output), output
    assert site.get().body == b"check1"


def test_last_answer_of_an_unhealthy_process_is_shown_once(site: Site, source: Path, tmp_path: Path) -> None:
    output = deploy_rejected(tmp_path, entry(source, health={"path": "/check1", "timeout": 3}))
    assert "process 0 answered GET /check1 with 403 Who are you? within 3 s (health.timeout)" in output
    assert site.get().body == b"check1"


def test_deploy_that_clients_do_not_reach_is_undone(site: Site, host: Host, source: Path, tmp_path: Path) -> None:
    status = ["playbooks/status.yml", HOST, "-e", f"json={tmp_path}/status.json"]
    live = host.check_output("readlink /srv/door/live/release")
    edit = "sed -i 's/server_name door.test;/&\\n    return 404;/' /etc/nginx/funnel/app.door.conf && nginx -s reload"
    host.check_output(edit)
    try:
        output = deploy_rejected(tmp_path, entry(source, env={"CHECK": "check1", "OTHER": "1"}))
        reason = "http://door.test does not reach the app: nginx answered /.funnel/health/door with 404 Not Found"
        assert re.search(rf"release \w+ was live for \d+ s and was rolled back: {re.escape(reason)}", output), output
        assert host.check_output("readlink /srv/door/live/release") == live
        host.check_output(edit)  # the deploy has restored the site
        run_playbook(*status)
        assert any(reason in problem for problem in json.loads((tmp_path / "status.json").read_text())["problems"])
    finally:
        host.check_output("sed -i '/^    return 404;$/d' /etc/nginx/funnel/app.door.conf && nginx -s reload")
    eventually(lambda: site.get().body == b"check1", 10)


def test_site_with_which_clients_do_not_reach_the_app_is_restored(site: Site, source: Path, tmp_path: Path) -> None:
    output = deploy_rejected(tmp_path, entry(source, extra="return 444;"))
    assert "tornado_apps.door: nginx does not answer at http://door.test" in output
    assert "The previous files were restored" in output
    assert site.get().body == b"check1"
