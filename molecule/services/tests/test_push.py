"""Push to deploy: a real ``git push`` over SSH, as developers do it, to apps whose entries have a ``source.push``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Load
from tests.support.pushing import HOLD, Repository
from tests.support.remote import (
    ALL,
    ROOT,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra,
    find_leftovers,
    kill_playbook,
    python,
    run_playbook,
    start_playbook,
)
from tests.support.remote import hosts as named_hosts

SECRET = "as-secret-as-can-be"

#: Other settings than those of the entry.
CHANGED = {"env": {"THEME": "light"}, "secrets": {"SECRET": f"{SECRET}!"}}

BOTH = ("-e", '{"app_names": ["shout", "tutorial"]}')

#: What a shell command, a clone and a tunnel are answered with: nothing else of git's, or of a shell's, is to be had.
OTHER_COMMANDS = ("id", "git-upload-pack 'shout'", "git-receive-pack 'shout'; id", "git-receive-pack '../../../etc'", "")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hosts() -> dict[str, Host]:
    return named_hosts()


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    """Return the host that most is pushed to."""
    return hosts["debian12"]


@pytest.fixture(scope="module")
def keys(directory: Path) -> dict[str, Path]:
    """Return private keys: of who may push to both apps, of who may to one, and of a stranger."""
    found = {name: directory / name for name in ("alice", "bob", "stranger")}
    for name, path in found.items():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name} of the tests", "-f", str(path)], check=True)
    return found


@pytest.fixture(scope="module")
def entries(keys: dict[str, Path]) -> dict[str, Any]:
    """Return the apps that are pushed: the tutorial's, and one that the runner serves."""
    alice, bob = (keys[name].with_suffix(".pub").read_text() for name in ("alice", "bob"))
    tutorial = {"source": {"push": "main", "keys": [alice, bob]}, "run": {"procfile": "web"}, "port": 8310, "processes": 1}
    shout = {
        "source": {"push": "main", "keys": [alice]},
        "run": {"app": "web:make_app"},
        "processes": 2,
        "hooks": {"build": "sh build.sh"},
        "health": {"timeout": 5},
        "env": {"THEME": "dark"},
        "secrets": {"SECRET": SECRET},
    }
    own = {"domains": ["shout.test"], "drain": 3}
    return {"shout": shout | own, "tutorial": tutorial | own | {"domains": ["tutorial.test"]}}


@pytest.fixture(scope="module", autouse=True)
def provisioned(hosts: dict[str, Host], entries: dict[str, Any], directory: Path) -> Iterator[str]:
    """Provision the apps, which nobody has pushed yet; return what that printed. At the end the hosts have nothing of it."""
    yield expect_success(run_playbook("playbooks/deploy.yml", ALL, *BOTH, *extra(directory, apps(**entries))))
    expect_success(run_playbook("playbooks/remove.yml", ALL, *BOTH, *extra(directory, {})))
    for host in hosts.values():
        assert host.check_output("find /etc /usr/local /var/lib/funnel/git -path '*funnel*' -name '*push*' -type f") == ""
        assert host.check_output("find /var/lib/funnel/git -type f") == ""


@pytest.fixture(scope="module")
def repository(directory: Path, keys: dict[str, Path]) -> Repository:
    """Return a clone of the app that the runner serves, with nothing committed."""
    found = Repository(directory / "shout", keys["alice"])
    found.directory.mkdir()
    found.git("init", "--quiet", "--initial-branch=main")
    (found.directory / "requirements.txt").write_text("tornado==6.6.1\n")
    return found


@contextmanager
def held(host: Host) -> Iterator[None]:
    """Let the app's build last until the end of the block, or until the file that holds it is removed."""
    host.check_output("touch %s", HOLD)
    try:
        yield
    finally:
        host.check_output("rm -f %s", HOLD)


def ssh(repository: Repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ssh with the key of a clone's owner."""
    command = [*repository.ssh, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)


def said(host: Host) -> str:
    """Return what the live release says."""
    return str(Site(address(host), "shout.test").get().json["words"])


def branch(host: Host) -> str:
    """Return the commit that the branch is at on the host."""
    return host.run("git -c safe.directory=* -C /var/lib/funnel/git/repositories/shout.git rev-parse main").stdout.strip()


def run_deploy(entries: dict[str, Any], directory: Path, *options: str, **changes: Any) -> tuple[int, str]:
    changed = entries | {"shout": entries["shout"] | changes}
    return deploy("shout", "debian12", directory, apps(**changed), *options)


def test_until_something_is_pushed_there_is_nothing_to_serve_and_nothing_fails(
    hosts: dict[str, Host], entries: dict[str, Any], directory: Path, provisioned: str
) -> None:
    assert "failed=0" in provisioned
    for host in hosts.values():
        assert Site(address(host), "shout.test").get().status == 502
    status = expect_success(run_playbook("playbooks/status.yml", ALL, *extra(directory, apps(**entries))))
    assert status.count("shout: awaits its first push") == 2
    assert "changed=0" in expect_success(
        run_playbook("playbooks/deploy.yml", "debian13", *BOTH, *extra(directory, apps(**entries)))
    )


def test_the_tutorials_app_goes_live_when_it_is_pushed_as_it_is(
    hosts: dict[str, Host], directory: Path, keys: dict[str, Path]
) -> None:
    tutorial = Repository(directory / "tutorial", keys["bob"])
    subprocess.run(["cp", "-r", str(ROOT / "files/procfile_app"), str(tutorial.directory)], check=True)
    tutorial.git("init", "--quiet", "--initial-branch=main")
    tutorial.git("add", "--all")
    tutorial.git("commit", "--quiet", "--message", "As it is")
    places = [f"git@{address(host)}:tutorial" for host in hosts.values()]
    tutorial.git("remote", "add", "prod", places[0])
    for place in places:
        tutorial.git("remote", "set-url", "--add", "--push", "prod", place)
    with tutorial.start("push", "prod", "main") as process:
        words, _ = process.communicate(timeout=120)
    assert process.returncode == 0, words
    for host in hosts.values():
        assert Site(address(host), "tutorial.test").get().body == b"Hello, world!"
        history = python(host, "print(open('/srv/tutorial/history.json').read())")
        assert [entry["by"] for entry in history] == ["bob_of_the_tests"]


def test_who_pushes_sees_each_step_as_it_begins(host: Host, repository: Repository) -> None:
    repository.commit("one", build_sh="sleep 1")
    seen: dict[str, float] = {}
    with repository.start("push", f"git@{address(host)}:shout", "main") as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen.setdefault(line.removeprefix("remote: ").strip(), time.monotonic())
    assert process.returncode == 0, seen
    steps = [line for line in seen if line in ("build", "environment built", "start", "health", "switch")]
    assert steps == ["build", "environment built", "start", "health", "switch"]
    assert seen["environment built"] - seen["build"] > 1
    assert seen["switch"] - seen["health"] > 1
    assert said(host) == "one"


def test_no_request_fails_while_a_push_goes_live(host: Host, repository: Repository) -> None:
    commit = repository.commit("two")
    options = {"host": "shout.test", "get": "/", "post": "", "poll": "", "websocket": "", "connections": 20}
    with Load(address(host), **options) as load:
        status, words = repository.push(host)
        assert status == 0, words
        eventually(lambda: said(host) == "two")
    assert load.result.requests > 100
    assert (load.result.failed, load.result.repeated) == (0, 0), load.result
    assert branch(host) == commit
    assert find_leftovers(host, "shout") == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"web_py": "raise SystemExit('this code is broken')"}, "this code is broken"),
        ({"build_sh": f"echo no luck today with {SECRET}; exit 3"}, "no luck today with ********"),
        ({"build_sh": "printf '\\033[2Jall good\\r\\342\\200\\256'; exit 3"}, r"\x1b[2Jall good"),
    ],
)
def test_a_release_that_does_not_go_live_is_rejected_with_its_reason(
    host: Host, repository: Repository, files: dict[str, str], reason: str
) -> None:
    before = repository.git("rev-parse", "HEAD").strip()
    repository.commit("broken", **files)
    status, words = repository.push(host)
    repository.git("reset", "--quiet", "--hard", before)
    assert status != 0
    assert reason in words
    assert "[remote rejected]" in words
    assert SECRET not in words
    assert not {"\x1b", "\u202e"} & set(words)
    assert (said(host), branch(host)) == ("two", before)
    assert find_leftovers(host, "shout") == []


# What a pusher can do to the host


def refused(host: Host, repository: Repository, commit: str) -> str:
    """Push a commit that must not go live; return what git and the host have said."""
    before = branch(host)
    began = time.monotonic()
    status, words = repository.push(host, "shout", f"{commit}:main")
    assert time.monotonic() - began < 60
    assert status != 0, words
    assert (said(host), branch(host)) == ("two", before)
    assert find_leftovers(host, "shout") == []
    assert host.check_output("find /var/lib/funnel/git/repositories/shout.git/objects -name '*incoming*'") == ""
    return words


def test_a_few_objects_that_are_billions_of_files_are_refused_and_hold_up_nobody(
    host: Host, repository: Repository, directory: Path, keys: dict[str, Path]
) -> None:
    bomb = repository.bomb(10, 10)
    assert len(repository.git("rev-list", "--objects", bomb, "^HEAD").splitlines()) == 1 + 10 + 1
    with repository.start("push", f"git@{address(host)}:shout", f"{bomb}:main") as process:
        other = Repository(directory / "tutorial", keys["bob"])
        other.git("commit", "--quiet", "--allow-empty", "--message", "Meanwhile")
        status, words = other.push(host, "tutorial")
        assert status == 0, words
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the commit has more than 100000 files and directories" in refused(host, repository, bomb)


def test_a_file_that_is_small_until_it_is_unpacked_is_refused_and_stays_packed(host: Host, repository: Repository) -> None:
    zeros = repository.write("hash-object", "-w", "--stdin", content=bytes((512 << 20) + 1))
    assert int(repository.write("cat-file", "--batch-check=%(objectsize:disk)", content=zeros.encode())) < 1 << 23
    used = "du --summarize --block-size=1M /var/lib/funnel/git/repositories/shout.git"
    before = int(host.check_output(used).split()[0])
    assert "the files of the commit are more than 512 MiB" in refused(
        host, repository, repository.commit_of(repository.tree(f"100644 blob {zeros}\tzeros"))
    )
    assert int(host.check_output(used).split()[0]) - before < 2


def test_what_git_itself_finds_wrong_is_refused(host: Host, repository: Repository) -> None:
    blob = repository.write("hash-object", "-w", "--stdin", content=b"[core]")
    above = b"40000 ..\0" + bytes.fromhex(repository.tree(f"100644 blob {blob}\tconfig"))
    tree = repository.write("hash-object", "-w", "--stdin", "-t", "tree", "--literally", content=above)
    assert "contains '..'" in refused(host, repository, repository.commit_of(tree))


def test_pushes_that_fall_silent_take_the_places_of_their_app_and_of_no_other(
    host: Host, repository: Repository, directory: Path, keys: dict[str, Path]
) -> None:
    silent = [
        subprocess.Popen(
            [*repository.ssh, f"git@{address(host)}", "git-receive-pack 'shout'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(4)
    ]
    try:
        eventually(lambda: host.run("pgrep --count --full 'receive-[p]ack /var'").stdout.strip() == "4")
        assert "shout: 4 pushes are in progress on this host" in refused(host, repository, "HEAD")
        assert Repository(directory / "tutorial", keys["bob"]).push(host, "tutorial")[0] == 0
    finally:
        for process in silent:
            process.kill()
            process.communicate()
    eventually(lambda: host.run("pgrep --full 'receive-[p]ack /var'").rc != 0)


def test_a_repository_that_is_full_takes_no_more_and_says_who_can_help(host: Host, repository: Repository) -> None:
    ballast = "/var/lib/funnel/git/repositories/shout.git/objects/pack/ballast"
    host.check_output("fallocate --length 1G %s", ballast)
    try:
        words = refused(host, repository, repository.commit_of("HEAD^{tree}"))
        assert "shout: its repository on this host has 10" in words
        assert "an administrator of the host can remove /var/lib/funnel/git/repositories/shout.git" in words
    finally:
        host.check_output("rm %s", ballast)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (("main:other",), "other is not deployed, only main is"),
        (("main:refs/tags/v1",), "v1 is not deployed"),
        (("main", "main:other"), "other is not deployed"),
        ((":main",), "cannot be deleted"),
    ],
)
def test_only_the_branch_of_the_entry_can_be_pushed(
    host: Host, repository: Repository, what: tuple[str, ...], reason: str
) -> None:
    status, words = repository.push(host, "shout", *what)
    assert status != 0
    assert reason in words
    assert said(host) == "two"


def test_a_key_pushes_to_its_own_apps_and_to_nothing_else(host: Host, repository: Repository, keys: dict[str, Path]) -> None:
    bobs, strangers = (Repository(repository.directory, keys[name]) for name in ("bob", "stranger"))
    assert "may not push to shout, only to tutorial (branch main)" in bobs.push(host)[1]
    assert "may not push to sample" in repository.push(host, "sample")[1]
    assert "Permission denied" in strangers.push(host)[1]
    assert "this key may only git push to tutorial (branch main)" in bobs.git(
        "clone", f"git@{address(host)}:tutorial", f"{repository.directory}/copy"
    )
    for command in OTHER_COMMANDS:
        answer = ssh(repository, f"git@{address(host)}", command)
        assert (answer.returncode, answer.stdout) == (1, ""), command
        assert "this key" in answer.stderr, command
    assert ssh(repository, "-W", "127.0.0.1:22", f"git@{address(host)}").stdout == ""


def test_what_root_does_for_the_user_git_is_one_program_and_nothing_secret_can_be_read(host: Host) -> None:
    allowed = host.check_output("sudo --list --other-user=git")
    assert [line.strip() for line in allowed.splitlines() if "NOPASSWD" in line] == [
        "(root) NOPASSWD: /usr/local/lib/funnel/push ^deploy [a-z][a-z0-9_-]* [A-Za-z0-9@._+/-]+$"
    ]
    for path in ("/etc/funnel/push/shout.json", "/srv/shout/live/release/source.tar", "/srv/shout/live/release/secrets.json"):
        host.check_output("test -e %s", path)
        assert host.run("setpriv --reuid=git --regid=git --clear-groups cat %s", path).rc != 0
    assert host.run("setpriv --reuid=git --regid=git --clear-groups touch %s", "/var/lib/funnel/git/.ssh/more").rc != 0


def test_settings_change_without_a_push_and_the_code_stays(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    shown = expect_success(run_deploy(entries, directory, "--diff", **CHANGED))
    answer = Site(address(host), "shout.test").get().json
    assert answer == {"words": "two", "theme": "light", "secret": len(SECRET) + 1}
    assert SECRET not in shown
    repository.commit("three")
    assert repository.push(host)[0] == 0
    assert Site(address(host), "shout.test").get().json == answer | {"words": "three"}


def test_a_rollback_goes_back_to_what_was_pushed_before_and_the_next_run_leaves_it(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    repository.commit("four")
    assert repository.push(host)[0] == 0
    expect_success(run_playbook("playbooks/rollback.yml", "debian12", "-e", "app=shout"))
    assert said(host) == "three"
    assert "changed=0" in expect_success(run_deploy(entries, directory, **CHANGED))
    assert said(host) == "three"


def test_of_two_pushes_at_once_the_second_waits_and_is_told(host: Host, repository: Repository, directory: Path) -> None:
    other = repository.clone(directory / "other")
    with held(host):
        first = repository.commit("first")
        with repository.start("push", f"git@{address(host)}:shout", "main") as winner:
            eventually(lambda: "build of a push" in host.run("cat /srv/shout/.lock").stdout, 90)
            other.commit("second")
            with other.start("push", f"git@{address(host)}:shout", "main") as loser:
                eventually(lambda: host.run("pgrep --count --full 'funnel/[p]ush receive'").stdout.strip() == "2", 90)
                host.check_output("rm %s", HOLD)
                words = loser.communicate(timeout=120)[0]
            assert winner.wait(timeout=120) == 0
    assert loser.returncode != 0
    assert "another push has updated main meanwhile; fetch it first, or push again" in words
    assert (said(host), branch(host)) == ("first", first)


def test_a_deploy_that_a_push_has_overtaken_does_not_take_it_back(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    commit = repository.commit("overtaking")
    options = ["-e", "app=shout", *extra(directory, apps(**entries))]
    with held(host), start_playbook("playbooks/deploy.yml", "debian12", *options) as playbook:
        try:
            eventually(lambda: "the build of a release" in host.run("cat /srv/shout/.lock").stdout, 90)
            with repository.start("push", f"git@{address(host)}:shout", "main") as process:
                eventually(lambda: host.run("ls /srv/shout/.pushed-*.tar").rc == 0, 90)
                host.check_output("rm %s", HOLD)
                words = process.communicate(timeout=120)[0]
            output, _ = playbook.communicate(timeout=120)
        except BaseException:
            kill_playbook(playbook)
            raise
    assert process.returncode == 0, words
    assert playbook.returncode != 0
    assert f"{commit} was pushed meanwhile and is live" in output.replace("\n       ", "")
    assert said(host) == "overtaking"


def test_a_pusher_who_goes_away_leaves_nothing_half_done(host: Host, repository: Repository) -> None:
    repository.commit("away")
    with held(host):
        process = repository.start("push", f"git@{address(host)}:shout", "main")
        eventually(lambda: "build of a push" in host.run("cat /srv/shout/.lock").stdout, 90)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert said(host) == "overtaking"
    commit = repository.commit("back")
    # What was pushed before it may come to an end meanwhile, and the branch with it.
    eventually(lambda: repository.push(host)[0] == 0, 90)
    assert (said(host), branch(host)) == ("back", commit)
    assert find_leftovers(host, "shout") == []


def test_a_key_that_is_taken_out_of_the_entry_pushes_no_more(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path, keys: dict[str, Path]
) -> None:
    bobs = keys["bob"].with_suffix(".pub").read_text()
    expect_success(run_deploy(entries, directory, source={"push": "main", "keys": [bobs]}))
    repository.commit("too late")
    status, words = repository.push(host)
    assert status != 0
    assert "may not push to shout" in words
    assert Repository(repository.directory, keys["bob"]).push(host)[0] == 0
    assert said(host) == "too late"


def test_an_app_that_is_removed_leaves_neither_keys_nor_code(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    remaining = apps(tutorial=entries["tutorial"])
    expect_success(run_playbook("playbooks/remove.yml", "debian12", "-e", "app=shout", *extra(directory, remaining)))
    left = host.check_output("find /srv /etc /var/lib/funnel /var/log -name '*shout*'")
    assert left == ""
    assert "shout" not in host.check_output("cat /var/lib/funnel/git/.ssh/authorized_keys")
    assert "may not push to shout" in repository.push(host)[1]
