"""The playbooks run.yml, which runs a command in the live release of an app, and logs.yml, which shows its logs."""

from __future__ import annotations

import re
import time

import pytest
from testinfra.host import Host

from tests.support.remote import APP_GROUP, Site, address, expect_success, processes, run_playbook, start_playbook

#: A command that prints its user, directory, interpreter, limit and environment.
PRINT_CONTEXT = "sh -c 'id -un; pwd; command -v python; ulimit -Sn; echo key $COOKIE_SECRET; echo $TORNADO_RELEASE'"

#: A log line as the playbook shows it: the host and the requested path.
SHOWN_REQUEST = re.compile(r"^ *(debian1[23]) [ab]/\d+: \S+Z .* GET (/day-two/\d+) ")


def run(*options: str, app: str = "sample", command: str) -> tuple[int, str]:
    return run_playbook("playbooks/run.yml", APP_GROUP, "-e", f"app={app}", "-e", f'command="{command}"', *options)


def send_requests(sites: list[Site], numbers: range) -> list[tuple[str, str]]:
    """Request missing pages from the hosts in turn; return the expected log entries."""
    expected = []
    for number in numbers:
        name = ("debian12", "debian13")[number % 2]
        assert sites[number % 2].get(f"/day-two/{number}").status == 404
        expected.append((name, f"/day-two/{number}"))
    return expected


def test_command_runs_in_app_environment_on_one_host_without_leaking_secrets(hosts: dict[str, Host]) -> None:
    output = expect_success(run(command=PRINT_CONTEXT))
    [shown] = re.findall(r"^debian12: sh -c .*, in release (\w+) of sample\n((?:  .+\n){6})", output, re.MULTILINE)
    release = Site(address(hosts["debian12"])).get("/whoami").json["release"]
    place = f"/srv/sample/releases/{release}"
    pid = next(iter(processes(hosts["debian12"], "sample").values()))
    limit = hosts["debian12"].check_output(f"grep 'Max open files' /proc/{pid}/limits").split()[3]
    assert shown == (release, f"  sample\n  {place}/src\n  {place}/venv/bin/python\n  {limit}\n  key ********\n  {release}\n")
    assert "not-for-others" not in output
    assert "debian13: " not in output


def test_failed_command_is_reported_for_every_selected_host() -> None:
    status, output = run("-e", "once=false", command="sh -c 'echo of $TORNADO_APP >&2; exit 7'")
    assert status != 0
    failed = r"^fatal: \[(\w+)\].*\n.*\n +msg: \|-\n +sample: the command failed with exit status 7:\n +of sample$"
    assert set(re.findall(failed, output, re.MULTILINE)) == {"debian12", "debian13"}, output


def test_check_mode_reports_the_command_without_running_it(hosts: dict[str, Host]) -> None:
    output = expect_success(run("--check", command="touch /srv/sample/shared/touched"))
    assert re.search(r"^debian12: would run touch /srv/sample/shared/touched, in release \w{12} of sample$", output, re.MULTILINE)
    assert hosts["debian12"].run("test -e /srv/sample/shared/touched").rc != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["app=smaple", "command=true"], "tornado_apps: no such app smaple; did you mean sample?"),
        (["command=true"], "app: name the app with -e app=NAME; there are sample, plain"),
        (["app=sample"], "command: must be a program and its arguments; found ''"),
        (["app=sample", "command='sleep 60'", "timeout=1"], "did not end within 1 s"),
    ],
)
def test_invalid_command_is_rejected_and_slow_command_is_terminated(options: list[str], message: str) -> None:
    status, output = run_playbook("playbooks/run.yml", APP_GROUP, *(word for option in options for word in ("-e", option)))
    assert status != 0
    assert message in re.sub(r"\s+", " ", output)


def test_logs_of_all_hosts_are_merged_by_time_then_followed_live(hosts: dict[str, Host]) -> None:
    sites = [Site(address(hosts[name])) for name in ("debian12", "debian13")]
    before = send_requests(sites, range(4))
    options = ["-e", "app=sample", "-e", f"lines={len(before)}", "-e", "follow=6"]
    shown: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    with start_playbook("playbooks/logs.yml", APP_GROUP, *options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "TASK [Follow the logs]" in line:
                after = send_requests(sites, range(4, 8))
            if found := SHOWN_REQUEST.findall(line):
                shown += found
                last = time.monotonic()
    assert process.returncode == 0
    assert shown[: len(before)] == before
    assert sorted(shown[len(before) :]) == sorted(after) != []
    assert time.monotonic() - last > 2, "followed lines must be shown immediately, not at the end"
