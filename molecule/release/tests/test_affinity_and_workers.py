"""Session affinity through nginx, workers during a deploy, and what the kernel kills first when memory runs out."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import (
    Response,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    processes,
    python,
    run_playbook,
    run_site,
    start_playbook,
)

HOST = "debian12"
NAME = "chat.test"

#: Seconds that the singleton takes to stop.
STOP_SECONDS = 1

WEB = """
import os, tornado.web
from tasks import work

received = []


class Messages(tornado.web.RequestHandler):
    def get(self):
        self.write({"process": os.environ["TORNADO_PROCESS"], "slot": os.environ["TORNADO_SLOT"], "messages": received})

    def post(self):
        received.append(self.request.body.decode())
        self.get()


class Cacheable(tornado.web.RequestHandler):
    def get(self):
        self.set_header("Cache-Control", "public, max-age=60")


class Task(tornado.web.RequestHandler):
    def post(self):
        work.delay(self.request.body.decode())


handlers = [("/", Messages), ("/upload", Messages), ("/cacheable", Cacheable), ("/task", Task)]
app = tornado.web.Application(handlers)
"""

TASKS = """
import os, pathlib, time
from celery import Celery

home = pathlib.Path(os.environ["HOME"])
queue = home / "queue"
queue.mkdir(exist_ok=True)
app = Celery(broker="filesystem://")
folders = {"data_folder_in": str(queue), "data_folder_out": str(queue), "control_folder": str(home / "control")}
app.conf.broker_transport_options = folders
app.conf.broker_connection_retry_on_startup = True


@app.task(name="work", acks_late=False, ignore_result=True)
def work(name):
    (home / f"{name}.begun").touch()
    while not (home / f"{name}.go").exists():
        time.sleep(0.1)
    (home / f"{name}.done").touch()
"""

CLOCK = f"""
import os, pathlib, signal, sys, time

ticks = pathlib.Path(os.environ["HOME"], "ticks")


def tick():
    with ticks.open("a") as file:
        file.write(f"{{os.getpid()}} {{time.time()}}\\n")


def stop(_number, _frame):
    time.sleep({STOP_SECONDS})
    tick()
    sys.exit()


signal.signal(signal.SIGINT, stop)
while True:
    tick()
    time.sleep(0.05)
"""

ENTRY: dict[str, Any] = {
    "run": {"app": "web:app"},
    "domains": [NAME],
    "processes": 2,
    "affinity": "cookie",
    "drain": 2,
    "paths": {"/upload/": {"upload_size": "2m"}},
    "workers": {
        "queue": {"command": "celery -A tasks worker --concurrency 1 --loglevel INFO", "stop_timeout": 90},
        "clock": {"command": "python clock.py", "singleton": True, "stop_signal": "INT"},
    },
}


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    return hosts[HOST]


@pytest.fixture(scope="module")
def site(host: Host) -> Site:
    return Site(address(host), NAME)


@pytest.fixture(scope="module", autouse=True)
def entry(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Deploy the app, and remove it after the module."""
    source = tmp_path_factory.mktemp("chat")
    (source / "web.py").write_text(WEB)
    (source / "tasks.py").write_text(TASKS)
    (source / "clock.py").write_text(CLOCK)
    (source / "requirements.txt").write_text("tornado==6.6.1\ncelery==5.5.3\n")
    chat = {"source": {"path": str(source)}, **ENTRY}
    expect_success(run_site(HOST, source, apps(chat=chat)))
    yield chat
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=chat"))
    assert "chat" not in host.check_output("supervisorctl status")


def exists(host: Host, path: str) -> bool:
    return host.run("test -e %s", path).succeeded


def cookie_of(response: Response) -> str:
    """Return the cookie that a response sets, as a client sends it."""
    return response.headers["set-cookie"].partition(";")[0]


def test_client_with_a_cookie_stays_with_its_process(site: Site) -> None:
    first = site.get("/")
    assert re.fullmatch(r"funnel_chat=[0-9a-f]{32}; Path=/; HttpOnly; SameSite=Lax", first.headers["set-cookie"])
    cookie = cookie_of(first)
    for number in range(10):
        response = site.request("POST", "/", body=str(number), headers={"Cookie": cookie})
        assert "set-cookie" not in response.headers
    assert site.get("/", Cookie=cookie).json == first.json | {"messages": [str(number) for number in range(10)]}


def test_clients_are_distributed_to_all_processes(site: Site) -> None:
    counts = Counter(site.get("/").json["process"] for _ in range(24))
    assert counts.keys() == {"0", "1"}


def test_response_that_caches_share_sets_no_cookie(site: Site) -> None:
    assert "set-cookie" not in site.get("/cacheable").headers


def test_client_gets_another_process_while_its_own_is_gone(host: Host, site: Site) -> None:
    first = site.get("/")
    cookie, process = cookie_of(first), first.json["process"]
    name = f"chat-{first.json['slot']}:{process}"
    host.check_output("supervisorctl stop %s", name)
    try:
        assert {site.request("POST", "/", "x", {"Cookie": cookie}).json["process"] for _ in range(5)} == {"10"[int(process)]}
    finally:
        host.check_output("supervisorctl start %s", name)
    eventually(lambda: site.get("/", Cookie=cookie).json["process"] == process)


def test_post_to_a_path_without_its_slash_reaches_the_app(site: Site) -> None:
    response = site.request("POST", "/upload", body="a=b")
    assert response.status == 200
    assert response.json["messages"][-1] == "a=b"


def test_status_shows_workers_with_the_memory_of_their_programs(host: Host, entry: dict[str, Any], tmp_path: Path) -> None:
    expect_success(
        run_playbook("playbooks/status.yml", HOST, *extra_vars(tmp_path, apps(chat=entry)), "-e", f"json={tmp_path}/status.json")
    )
    found = json.loads((tmp_path / "status.json").read_text())["hosts"][HOST]["processes"]
    workers = {process["worker"]: process for process in found if process["app"] == "chat" and process["worker"]}
    assert workers.keys() == {"queue", "clock"}
    assert {worker["problem"] for worker in workers.values()} == {""}
    children = host.check_output("pgrep -P %s", str(workers["queue"]["pid"])).split()
    assert children, "Celery's pool"
    assert workers["queue"]["rss"] > 40 << 20, "of the pool, too"


#: Prints the effective out-of-memory scores of processes, by their programs.
SCORES = """
import json, pathlib, subprocess
scores = {}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (path / "cmdline").read_bytes().decode().split("\\0")
        app = b"TORNADO_APP=chat" in (path / "environ").read_bytes().split(b"\\0")
        name = "app" if app else words[0].split()[0].rstrip(":").rpartition("/")[2] if words[0] else ""
        name = "supervisord" if any("supervisord" in word for word in words[:2]) else name
        scores.setdefault(name, set()).add(int((path / "oom_score_adj").read_text()))
    except OSError:
        continue
print(json.dumps({name: sorted(found) for name, found in scores.items()}))
"""


def test_apps_are_killed_before_what_serves_them_when_memory_runs_out(host: Host) -> None:
    scores = python(host, SCORES)
    assert scores["app"] == [500]
    # A container without CAP_SYS_RESOURCE cannot lower the score.
    assert max(scores["supervisord"] + scores["nginx"]) <= 0
    show = "systemctl show --property OOMScoreAdjust --property OOMPolicy --value"
    assert sorted(host.check_output(f"{show} nginx").split()) == ["-500", "continue"]
    assert sorted(host.check_output(f"{show} supervisor").split()) == ["-100", "continue"]


def test_restart_lets_a_task_finish(host: Host, site: Site, entry: dict[str, Any], tmp_path: Path) -> None:
    before = processes(host, "chat")
    site.request("POST", "/task", body="zeroth")
    eventually(lambda: exists(host, "/srv/chat/shared/zeroth.begun"))
    options = ("-e", "app=chat", *extra_vars(tmp_path, apps(chat=entry)))
    with start_playbook("playbooks/restart.yml", HOST, *options) as run:
        eventually(lambda: len(processes(host, "chat").keys() - before.keys()) >= 2, 60)
        assert not exists(host, "/srv/chat/shared/zeroth.done")
        host.check_output("touch /srv/chat/shared/zeroth.go")
        output, _ = run.communicate(timeout=120)
    expect_success((run.wait(), output))
    assert exists(host, "/srv/chat/shared/zeroth.done")
    assert not set(processes(host, "chat").values()) & set(before.values())


def test_deploy_lets_a_task_finish_and_runs_one_singleton_at_a_time(
    host: Host, site: Site, entry: dict[str, Any], tmp_path: Path
) -> None:
    """The task in progress ends after the traffic has moved; then the worker ends."""
    cookie = cookie_of(site.get("/"))
    before = site.get("/", Cookie=cookie).json
    workers = processes(host, "chat")
    site.request("POST", "/task", body="first")
    eventually(lambda: exists(host, "/srv/chat/shared/first.begun"))
    changed = entry | {"env": {"CHAT_RELEASE": "2"}}
    outcome: list[tuple[int, str]] = []
    run = threading.Thread(target=lambda: outcome.append(deploy("chat", HOST, tmp_path, apps(chat=changed))))
    run.start()
    after = eventually(lambda: (found := site.get("/", Cookie=cookie).json)["slot"] != before["slot"] and found, 60)
    assert after["process"] == before["process"], "a switch keeps the number of a client's process"
    assert not exists(host, "/srv/chat/shared/first.done")
    host.check_output("touch /srv/chat/shared/first.go /srv/chat/shared/second.go")
    run.join()
    expect_success(outcome[0])
    assert exists(host, "/srv/chat/shared/first.done")
    assert not set(processes(host, "chat").values()) & set(workers.values())
    site.request("POST", "/task", body="second")
    eventually(lambda: exists(host, "/srv/chat/shared/second.done"))
    ticks = [line.split() for line in host.check_output("cat /srv/chat/shared/ticks").splitlines()]
    times: dict[str, list[float]] = {}
    for pid, moment in ticks:
        times.setdefault(pid, []).append(float(moment))
    assert len(times) >= 2, "that of before the deploy, and that of the deploy"
    for old, new in itertools.pairwise(times.values()):
        assert max(old) < min(new), "both ran at the same time"
        assert max(old) - sorted(old)[-2] > STOP_SECONDS / 2, "the old one had the time to stop"
