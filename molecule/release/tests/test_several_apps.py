"""Several apps in one run: they are built and switched concurrently, in the order of dependencies, and fail independently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import APP_GROUP, ROOT, Site, address, apps, expect_success, extra_vars, processes, run_playbook
from tests.support.webhook import Hooks

THIRD: dict[str, Any] = {
    "source": {"path": str(ROOT / "files/sample_app")},
    "run": {"app": "sample_app.web:make_app"},
    "domains": ["third.test"],
    "health": {"path": "/healthz"},
    "processes": 1,
    "drain": 1,
    "depends_on": ["sample"],
}

#: Ends when the build of the third app has begun, which would wait for this one if builds were not concurrent.
CONCURRENT = {"build": "sh -c 'for _ in $(seq 100); do [ ! -e /srv/third ] || exit 0; sleep 0.1; done; exit 1'"}

#: Serves a part of the site of the third app, and responds with the path of the request.
MOVED: dict[str, Any] = {
    "run": {"wsgi": "web:application"},
    "domains": ["third.test"],
    "prefix": "/old/",
    "health": {"path": "/old/"},
    "processes": 1,
    "drain": 1,
}
ECHO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]
"""

#: The columns of the table of a run.
COLUMNS = ("app", "hosts", "from", "to", "why", "reloads", "time", "result")

FAILING: dict[str, Any] = {"hooks": {"before_switch": {"command": "false", "once": True}}}


@pytest.fixture(autouse=True)
def restore_entries(tmp_path: Path) -> Iterator[None]:
    """Remove the additional apps and restore the others."""
    yield
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=third,moved", *extra_vars(tmp_path, {})))
    expect_success(run_playbook("playbooks/deploy.yml", APP_GROUP, *extra_vars(tmp_path, {})))


def assert_reported(hooks: Hooks, output: str, names: list[str]) -> None:
    """Verify that the table and the notifications of the run show what changed, why, and what failed."""
    lines = (re.split(" {2,}", line) for line in output[output.rindex("\nAPP ") :].splitlines())
    rows = {(cells[0], cells[1]): cells[4:6] + cells[7:] for cells in lines if len(cells) == len(COLUMNS)}
    for name in names:
        failed = "failed" if name == names[0] else "not switched"
        assert rows["sample", name] == ["env.NEW, hooks.build", "nginx", "deployed"]
        assert rows["third", name] == ["first release", "nginx", "deployed"]
        assert rows["plain", name] == ["hooks.before_switch", "-", failed]
    assert re.search(r"^sample +\S+ +\w{12} +\w{12} .* [\d.]+ s +deployed$", output, re.MULTILINE)
    assert re.search(r"^third +\S+ +- +\w{12} .* [\d.]+ s +deployed$", output, re.MULTILINE)
    assert re.search(r"^plain +\S+ +\w{12} +\w{12} .* - +failed$", output, re.MULTILINE)
    assert [body["event"] for _path, _headers, body in hooks.received] == ["start", "failure"]
    body = hooks.received[1][2]
    assert body["seconds"] > 0
    deployed = {host: change["reasons"] for change in body["changes"] for host in change["hosts"] if change["app"] == "sample"}
    assert deployed == {name: ["env.NEW", "hooks.build"] for name in names}
    assert "t0ken" not in output


def test_failing_app_leaves_the_others_complete_and_restart_is_concurrent(hosts: dict[str, Host], tmp_path: Path) -> None:
    plain = {name: processes(host, "plain") for name, host in hosts.items()}
    sample = {"headers": {"X-Changed": "yes"}, "env": {"NEW": "release"}, "hooks": CONCURRENT}
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/web.py").write_text(ECHO)
    moved = MOVED | {"source": {"path": str(tmp_path / "moved")}}
    variables = apps(sample=sample, plain=FAILING, third=THIRD, moved=moved)
    with Hooks() as hooks:
        variables |= {"fleet_notifications": [{"webhook": hooks.url("/200?t0ken")}]}
        status, output = run_playbook("playbooks/deploy.yml", APP_GROUP, *extra_vars(tmp_path, variables))
    assert status != 0, output
    assert_reported(hooks, output, list(hosts))
    assert "plain failed; the other apps are complete" in output
    assert "debian12: tornado_apps.plain: release" in output
    report = output.partition("the hosts now serve:")[2]
    for name, host in hosts.items():
        assert re.search(rf"plain: {name} \w{{12}} \(unchanged\)", report), report
        assert re.search(rf"sample: {name} \w{{12}} \(before: \w{{12}}\)", report), report
        assert re.search(rf"third: {name} \w{{12}} \(before: nothing\)", report), report
        assert Site(address(host), "third.test").get("/healthz").status == 200
        assert Site(address(host)).get("/healthz").headers["x-changed"] == "yes"
        assert processes(host, "plain") == plain[name]
        switched = [float(host.check_output(f"stat --format=%.Y /srv/{app}/live")) for app in ("sample", "third")]
        assert switched[0] < switched[1]
        assert Site(address(host), "third.test").get("/old/page").body == b"/old/page"

    moved |= {"prefix": "/new/", "health": {"path": "/new/"}}
    variables |= apps(sample=sample, plain=FAILING, third=THIRD, moved=moved)
    status, output = run_playbook("playbooks/deploy.yml", "debian13", "-e", "app=plain,moved", *extra_vars(tmp_path, variables))
    assert status != 0, output
    assert "plain failed; the other apps are complete" in output
    site = Site(address(hosts["debian13"]), "third.test")
    assert [site.get(path).status for path in ("/new/page", "/old/page")] == [200, 404], "the site follows the switch"

    output = expect_success(run_playbook("playbooks/restart.yml", "debian13", *extra_vars(tmp_path, variables)))
    reloads = "nginx" if re.search(r"third is release .*\breload [\d.]+ s", output) else "-"
    row = rf"^third +debian13 +(\w{{12}}) +\1 +restart +{reloads} +[\d.]+ s +restarted$"
    assert re.search(row, output, re.MULTILINE), output
    assert set(re.findall(r"^debian13: (\w+) is release", output, re.MULTILINE)) == {"sample", "plain", "third", "moved"}
    host = hosts["debian13"]
    started = {app: float(host.check_output(f"stat --format=%.Y /srv/{app}/live/run")) for app in ("sample", "plain", "third")}
    first, second = sorted(("sample", "plain"), key=started.__getitem__)
    seconds = dict(re.findall(r"^(\w+) +debian13 .* ([\d.]+) s +restarted$", output, re.MULTILINE))
    assert started[second] - started[first] < float(seconds[first]), "the second must start before the first is complete"
    assert started["third"] > started["sample"], "it depends on it"
