"""Variations of a host: what each of them serves or sets stays so, next to an app, and after the collection has been removed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.remote import ROOT, Site, address, eventually, expect_success, hosts, run_playbook, run_site
from tests.support.variations import PACKAGES, PROXY, REFUSALS, VARIATIONS, prepare, probe

HOST = "varied"
testinfra_hosts = [f"ansible://{HOST}"]

WEB = """
import tornado.web

class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write("served")

def make_app():
    return tornado.web.Application([("/", Handler)])
"""

#: The app that is deployed, and the keys of those that are refused.
APP = {"run": {"app": "web:make_app"}, "processes": 1, "drain": 1}

EXPECTED = {name: variation.expected for name, variation in VARIATIONS.items()}


def outputs(host: Host) -> dict[str, str]:
    """Return the outputs of all variations, after waiting for the programs that have just started."""
    found: dict[str, str] = {}

    def complete() -> bool:
        found.update(probe(host, VARIATIONS))
        return found == EXPECTED

    with contextlib.suppress(AssertionError):
        eventually(complete, seconds=10)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "app"
    directory.mkdir()
    (directory / "web.py").write_text(WEB)
    (directory / "requirements.txt").write_text("tornado==6.6.1\n")
    return directory


@pytest.fixture(scope="module")
def varied() -> Host:
    """Return the host with all variations."""
    host = hosts(HOST)[HOST]
    install = f"apt-get update -qq && apt-get install -qq --no-install-recommends {PACKAGES} > /dev/null 2>&1"
    host.run_expect([0], f"export DEBIAN_FRONTEND=noninteractive; {install}")
    prepare(host, {name: variation.prepare for name, variation in VARIATIONS.items()})
    host.run_expect([0], "nginx -t -q && systemctl daemon-reload && systemctl restart nginx supervisor")
    host.run_expect([0], "cp --archive /etc/nginx /etc/supervisor /var/tmp")
    assert outputs(host) == EXPECTED
    return host


@pytest.fixture(scope="module")
def refusal(varied: Host, source: Path) -> str:
    """Return the one message of a run that is refused, with collapsed white space."""
    apps = {
        name: {"source": {"path": str(source)}, "domains": [f"{name}.test"], **APP, **each.keys}
        for name, each in REFUSALS.items()
    }
    prepare(varied, {name: each.prepare for name, each in REFUSALS.items()})
    status, output = run_site(HOST, source.parent, {"tornado_apps": apps})
    prepare(varied, {name: each.undo for name, each in REFUSALS.items()})
    assert status != 0
    assert "changed=0" in output
    assert outputs(varied) == EXPECTED
    return re.sub(r"\s+", " ", output)


@pytest.mark.parametrize("name", REFUSALS)
def test_app_is_refused_before_anything_changes(refusal: str, name: str) -> None:
    assert REFUSALS[name].message in refusal


def test_interrupted_dpkg_is_reported_before_anything_changes(varied: Host, source: Path) -> None:
    varied.run_expect([0], "touch /var/lib/dpkg/updates/0001")
    status, output = run_site(HOST, source.parent, {"tornado_apps": {}})
    varied.run_expect([0], "rm /var/lib/dpkg/updates/0001")
    assert status != 0
    assert "changed=0" in output
    assert "dpkg --configure -a" in output


@pytest.fixture(scope="module")
def phases(varied: Host, source: Path) -> dict[str, dict[str, str]]:
    """Return the outputs of all variations after the steps of the life of an app."""
    variables = {
        "tornado_apps": {"shop": {"source": {"path": str(source)}, "domains": ["shop.test"], **APP}},
        "python_proxy": PROXY,
    }
    site = Site(address(varied), "shop.test")
    found = {}
    assert "hunter2" not in expect_success(run_site(HOST, source.parent, variables, "--diff"))
    found["provisioned"] = outputs(varied)
    assert site.get().body == b"served"
    varied.run_expect([0], "hostname renamed && echo renamed > /etc/hostname")
    assert "changed=0" in expect_success(run_site(HOST, source.parent, variables))
    varied.run_expect([0], "systemctl restart nginx supervisor")  # as after a reboot, with the sandbox of the units
    found["restarted"] = outputs(varied)
    eventually(lambda: site.get().body == b"served")
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=shop", "-e", '{"tornado_apps": {}}'))
    page = (ROOT / "docs/operations/existing-hosts.md").read_text()
    [commands] = re.findall(r"^## Return to the previous configuration$.*?^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    varied.run_expect([0], "bash -ec %s", commands)
    found["returned"] = outputs(varied)
    return found


@pytest.mark.parametrize("name", VARIATIONS)
def test_host_keeps_what_it_had(phases: dict[str, dict[str, str]], name: str) -> None:
    assert {phase: found.get(name) for phase, found in phases.items()} == dict.fromkeys(phases, EXPECTED[name])


@pytest.mark.usefixtures("phases")
def test_nginx_and_supervisord_return_to_their_previous_configuration(varied: Host) -> None:
    varied.run_expect([0], "for name in nginx supervisor; do diff --recursive /var/tmp/$name /etc/$name || exit; done")
