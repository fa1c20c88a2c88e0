"""A disk that fills during any step of a deploy: the live release serves, nothing is left, and the message names the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import CODE_PATH, Site, address, copy_code, eventually, find_leftovers

HOST = "debian12"
testinfra_hosts = [f"ansible://{HOST}"]

HOME = "/srv/sample"
SUPERVISOR = "/etc/supervisor/conf.d"

#: Builds a release of the sample app, or switches to one, like the modules, while a directory's disk fills. ``at`` is the step of
#: the switch at whose start it fills, ``free`` the KiB that stay free, and ``inodes`` whether no inode does. Prints the result.
DRIVER = """
import contextlib, itertools, json, os, pathlib, sys, tarfile
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs, build_release, plan_release
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import switch
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.operation import Operation, perform
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError, build_environment

case = json.loads(sys.argv[1])
layout, live = Layout("sample"), Layout("sample").current
os.umask(0o022)
os.environ.update(build_environment())

def fill():
    filled = pathlib.Path(case["directory"], "filled")
    filled.mkdir(mode=0o700)
    with open(filled / "zero", "wb") as file:
        space = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (case.get("free", 0) << 10))
    with contextlib.suppress(OSError):
        for number in itertools.count() if case.get("inodes") else ():
            (filled / str(number)).touch()

def build():
    launcher = (live / "launch.py").read_text().partition("\\n")[2]
    programs = Programs(launcher, {path.name: path.read_text() for path in (live / "runner").glob("*.py")})
    hooks = {"hooks": {"build": case["hook"]}} if "hook" in case else {}
    entry = {"source": {"path": "/nowhere"}, "run": {"app": "sample_app.web:make_app"}, "health": {"path": "/healthz"}}
    app = load({"sample": entry | {"drain": 1, "secrets": {"COOKIE_SECRET": "x"}} | hooks}, complete=False)["sample"]
    archive = pathlib.Path("/root/source.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add((live / "src").resolve(), ".")
    planned = plan_release(app, "full disk", programs)
    try:
        build_release(layout, app, planned, programs, archive, "driver")
    except (BuildError, OSError) as error:
        return {"failed": True, "msg": error_text(error)}
    return {"release": planned.id}

start = switch.Switcher.__init__
def start_filling(self, layout, request, on_step):
    start(self, layout, request, lambda step: (on_step(step), step == case.get("at") and fill()))
switch.Switcher.__init__ = start_filling

if "directory" in case and "at" not in case:
    fill()
operation = Operation("driver", rollback=case.get("rollback", False))
print(json.dumps(perform(operation, layout, case["release"]) if "release" in case else build()))
"""

#: Moves a directory to a disk of its own with some MiB and inodes of free space, and restarts the processes: their sockets may be
#: in it.
MOVE = """
set -e
mkdir /run/small
mount -t tmpfs -o mode=755 small /run/small
cp -a {directory}/. /run/small
chown --reference={directory} /run/small && chmod --reference={directory} /run/small
mount -o remount,size=$(($(df --output=used -k /run/small | tail -n 1) + {mebibytes} * 1024))k /run/small
mount -o remount,nr_inodes=$(($(df --output=iused /run/small | tail -n 1) + 2000)) /run/small
mount --bind /run/small {directory}
supervisorctl restart sample-$(basename $(readlink /srv/sample/live)):*
"""
MOVE_BACK = """
set -e
umount --lazy {directory}
find {directory} -mindepth 1 -delete
cp -a /run/small/. {directory}
umount /run/small && rmdir /run/small
supervisorctl restart sample-$(basename $(readlink /srv/sample/live)):*
"""

#: Kills a process when the record of its starts requires a further block of a full disk, and waits for the next one.
CRASH = """
cd /srv/sample/live/run
head -c $((4096 - $(stat --format %s 0.starts) % 4096)) /dev/zero | tr '\\0' '\\n' >> 0.starts
dd if=/dev/zero of=/srv/sample/filled bs=4k status=none
name=sample-$(basename $(readlink /srv/sample/live)):0
before=$(supervisorctl pid $name)
kill -KILL $before
for _ in $(seq 300); do
    now=$(supervisorctl pid $name)
    [ "$now" != 0 ] && [ "$now" != $before ] && break
    sleep 0.1
done
sleep 1.5
[ "$(supervisorctl pid $name)" = "$now" ] && rm /srv/sample/filled
"""


def run(host: Host, directory: str, **case: Any) -> dict[str, Any]:
    """Run the driver, free the space, and return the result."""
    case |= {"directory": directory} if directory else {}
    try:
        return dict(json.loads(host.check_output(f"PYTHONPATH={CODE_PATH} python3 -c %s %s", DRIVER, json.dumps(case))))
    finally:
        host.run_expect([0], "rm -rf %s/filled", directory)


@contextmanager
def small_disk(host: Host, directory: str, mebibytes: int = 3) -> Iterator[None]:
    """Give a directory a disk of its own."""
    host.run_expect([0], MOVE.format(directory=directory, mebibytes=mebibytes))
    try:
        eventually(lambda: live_release(host))
        yield
    finally:
        host.run_expect([0], MOVE_BACK.format(directory=directory))
        eventually(lambda: live_release(host))


def live_release(host: Host) -> str:
    """Return the release that all of several requests reach."""
    answers = [Site(address(host)).get("/whoami") for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
    (release,) = {answer.json["release"] for answer in answers}
    return str(release)


def assert_refused(result: dict[str, Any], directory: str) -> None:
    """Verify that a result is a failure whose message names the app, the full disk and the remedy."""
    assert result.get("failed"), result
    assert "tornado_apps.sample" in result["msg"], result
    assert directory in result["msg"], result
    assert "free some space, then run this again" in result["msg"], result


@pytest.fixture(scope="module", autouse=True)
def collection_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copy the collection's code to the host."""
    copy_code(HOST, tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def built(host: Host) -> Iterator[str]:
    """Build a second release as soon as enough space is free; return it. Switch back to the first one."""
    before = live_release(host)
    with small_disk(host, HOME, mebibytes=100):
        assert_refused(run(host, HOME, free=60_000), HOME)
        # A hook that fills the disk and succeeds nevertheless: the release must fail all the same.
        assert_refused(run(host, "", hook="sh -c 'cat /dev/zero > zero || true'"), HOME)
        assert (live_release(host), find_leftovers(host, "sample")) == (before, [])
        result = run(host, HOME, free=70_000)
        assert not result.get("failed"), result
    yield str(result["release"])
    assert not run(host, "", release=before).get("failed")


def test_disk_that_fills_during_a_switch_leaves_the_live_release(host: Host, built: str) -> None:
    before = live_release(host)
    host.run_expect([0], "install -d /srv/sample/cache/uv && head -c 1M /dev/zero > /srv/sample/cache/uv/wheel")
    with small_disk(host, HOME):
        # The switch moves the traffic in the step that has its name.
        for step, inodes in (("start", False), ("switch", False), ("switch", True)):
            assert_refused(run(host, HOME, release=built, at=step, inodes=inodes), HOME)
            assert (live_release(host), find_leftovers(host, "sample")) == (before, []), step
        assert not run(host, HOME, release=built, at="stop", inodes=True).get("failed")
        assert (live_release(host), find_leftovers(host, "sample")) == (built, [])
        # A rollback takes the space of the cache.
        assert not run(host, HOME, release=before, rollback=True).get("failed")
        assert (live_release(host), find_leftovers(host, "sample")) == (before, [])
        host.check_output("sh -c %s", CRASH)
        eventually(lambda: live_release(host) == before)


def test_full_disk_of_configuration_prevents_a_switch(host: Host, built: str) -> None:
    before = live_release(host)
    with small_disk(host, SUPERVISOR):
        assert_refused(run(host, SUPERVISOR, release=built, at="start"), SUPERVISOR)
        assert (live_release(host), find_leftovers(host, "sample")) == (before, [])
