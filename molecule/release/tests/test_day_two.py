"""Commands in what is served of an app, and its logs, from the controller."""

from __future__ import annotations

import re
import time

import pytest
from testinfra.host import Host

from tests.support.remote import ALL, Site, address, done, processes, run_playbook, start_playbook

#: Says who and where it is, with what it was given.
ASK = "sh -c 'id -un; pwd; command -v python; ulimit -Sn; echo key $COOKIE_SECRET; echo $TORNADO_RELEASE'"

#: A line of a log as the playbook shows it: of which host, and the path that was asked for.
ASKED = re.compile(r"^ *(debian1[23]) [ab]/\d+: \S+Z .* GET (/day-two/\d+) ")


def run(*options: str, app: str = "sample", command: str) -> tuple[int, str]:
    return run_playbook("playbooks/run.yml", ALL, "-e", f"app={app}", "-e", f'command="{command}"', *options)


def ask(sites: list[Site], numbers: range) -> list[tuple[str, str]]:
    """Ask one host after the other for what no app has; return what will be logged of it."""
    asked = []
    for number in numbers:
        name = ("debian12", "debian13")[number % 2]
        assert sites[number % 2].get(f"/day-two/{number}").status == 404
        asked.append((name, f"/day-two/{number}"))
    return asked


def test_a_command_runs_as_the_app_does_on_one_host_and_tells_no_secret(hosts: dict[str, Host]) -> None:
    output = done(run(command=ASK))
    [shown] = re.findall(r"^debian12: sh -c .*, in release (\w+) of sample\n((?:  .+\n){6})", output, re.MULTILINE)
    release = Site(address(hosts["debian12"])).get("/whoami").json["release"]
    place = f"/srv/sample/releases/{release}"
    pid = next(iter(processes(hosts["debian12"], "sample").values()))
    limit = hosts["debian12"].check_output(f"grep 'Max open files' /proc/{pid}/limits").split()[3]
    assert shown == (release, f"  sample\n  {place}/src\n  {place}/venv/bin/python\n  {limit}\n  key ********\n  {release}\n")
    assert "not-for-others" not in output
    assert "debian13: " not in output


def test_a_command_that_fails_says_how_on_every_host_that_was_asked_for() -> None:
    status, output = run("-e", "once=false", command="sh -c 'echo of $TORNADO_APP >&2; exit 7'")
    assert status != 0
    failed = r"^fatal: \[(\w+)\].*\n.*\n +msg: \|-\n +sample: the command failed with exit status 7:\n +of sample$"
    assert set(re.findall(failed, output, re.MULTILINE)) == {"debian12", "debian13"}, output


def test_a_dry_run_runs_nothing_and_says_so(hosts: dict[str, Host]) -> None:
    output = done(run("--check", command="touch /srv/sample/shared/touched"))
    assert re.search(r"^debian12: would run touch /srv/sample/shared/touched, in release \w{12} of sample$", output, re.MULTILINE)
    assert hosts["debian12"].run("test -e /srv/sample/shared/touched").rc != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["app=smaple", "command=true"], "app must be one of sample, plain; found smaple"),
        (["command=true"], "app must be one of sample, plain; found none"),
        (["app=sample"], "command: must be a program and its arguments; found ''"),
        (["app=sample", "command='sleep 60'", "timeout=1"], "did not end within 1 s"),
    ],
)
def test_what_cannot_be_run_is_refused_and_what_does_not_end_is_ended(options: list[str], message: str) -> None:
    status, output = run_playbook("playbooks/run.yml", ALL, *(word for option in options for word in ("-e", option)))
    assert status != 0
    assert message in re.sub(r"\s+", " ", output)


def test_logs_of_all_hosts_are_shown_by_their_times_and_then_as_they_come(hosts: dict[str, Host]) -> None:
    sites = [Site(address(hosts[name])) for name in ("debian12", "debian13")]
    before = ask(sites, range(4))
    options = ["-e", "app=sample", "-e", f"lines={len(before)}", "-e", "follow=6"]
    shown: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    with start_playbook("playbooks/logs.yml", ALL, *options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "TASK [Follow the logs]" in line:
                after = ask(sites, range(4, 8))
            if found := ASKED.findall(line):
                shown += found
                last = time.monotonic()
    assert process.returncode == 0
    assert shown[: len(before)] == before
    assert sorted(shown[len(before) :]) == sorted(after) != []
    assert time.monotonic() - last > 2, "they are shown as they come, not at the end"
