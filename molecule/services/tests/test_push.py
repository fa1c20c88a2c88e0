"""Push to deploy: ``git push`` over SSH to apps whose entries have a ``source.push``."""

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
    APP_GROUP,
    ROOT,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    find_leftovers,
    kill_playbook,
    python,
    run_playbook,
    start_playbook,
)
from tests.support.remote import hosts as named_hosts

SECRET = "as-secret-as-can-be"

#: Settings that differ from the entry.
CHANGED = {"env": {"THEME": "light"}, "secrets": {"SECRET": f"{SECRET}!"}}

BOTH = ("-e", '{"app_names": ["shout", "tutorial"]}')

#: Commands other than a push, which must all be rejected.
OTHER_COMMANDS = ("id", "git-upload-pack 'shout'", "git-receive-pack 'shout'; id", "git-receive-pack '../../../etc'", "")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hosts() -> dict[str, Host]:
    return named_hosts()


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    """Return the host that most tests push to."""
    return hosts["debian12"]


@pytest.fixture(scope="module")
def keys(directory: Path) -> dict[str, Path]:
    """Create private keys: alice may push to both apps, bob to one, the stranger to none."""
    found = {name: directory / name for name in ("alice", "bob", "stranger")}
    for name, path in found.items():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name} of the tests", "-f", str(path)], check=True)
    return found


@pytest.fixture(scope="module")
def entries(keys: dict[str, Path]) -> dict[str, Any]:
    """Return the entries of the pushed apps: that of the tutorial, and one that the runner serves."""
    alice, bob = (keys[name].with_suffix(".pub").read_text() for name in ("alice", "bob"))
    source = {"push": "main", "keys": [alice, bob], "subdirectory": "sites/tutorial"}
    tutorial = {"source": source, "run": {"procfile": "web"}, "port": 8310, "processes": 1}
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
    """Provision the apps before their first push and yield the output; remove them after the module and verify that."""
    yield expect_success(run_playbook("playbooks/deploy.yml", APP_GROUP, *BOTH, *extra_vars(directory, apps(**entries))))
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, *BOTH, *extra_vars(directory, {})))
    for host in hosts.values():
        assert host.check_output("find /etc /usr/local /var/lib/funnel/git -path '*funnel*' -name '*push*' -type f") == ""
        assert host.check_output("find /var/lib/funnel/git -type f") == ""


@pytest.fixture(scope="module")
def repository(directory: Path, keys: dict[str, Path]) -> Repository:
    """Return a repository without commits for the app that the runner serves."""
    found = Repository(directory / "shout", keys["alice"])
    found.directory.mkdir()
    found.git("init", "--quiet", "--initial-branch=main")
    (found.directory / "requirements.txt").write_text("tornado==6.6.1\n")
    return found


@contextmanager
def hold_build(host: Host) -> Iterator[None]:
    """Keep the app's build running until the block ends or the file is removed."""
    host.check_output("touch %s", HOLD)
    try:
        yield
    finally:
        host.check_output("rm -f %s", HOLD)


def ssh(repository: Repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ssh with the key of the repository's owner."""
    command = [*repository.ssh, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)


def fetch_words(host: Host) -> str:
    """Return the text that the live release responds with."""
    return str(Site(address(host), "shout.test").get().json["words"])


def branch(host: Host) -> str:
    """Return the commit of the branch on the host."""
    return host.run("git -c safe.directory=* -C /var/lib/funnel/git/repositories/shout.git rev-parse main").stdout.strip()


def run_deploy(entries: dict[str, Any], directory: Path, *options: str, **changes: Any) -> tuple[int, str]:
    changed = entries | {"shout": entries["shout"] | changes}
    return deploy("shout", "debian12", directory, apps(**changed), *options)


def test_app_without_push_serves_nothing_and_runs_succeed(
    hosts: dict[str, Host], entries: dict[str, Any], directory: Path, provisioned: str
) -> None:
    assert "failed=0" in provisioned
    for host in hosts.values():
        assert Site(address(host), "shout.test").get().status == 502
    status = expect_success(run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(directory, apps(**entries))))
    assert status.count("shout: awaits its first push") == 2
    assert "changed=0" in expect_success(
        run_playbook("playbooks/deploy.yml", "debian13", *BOTH, *extra_vars(directory, apps(**entries)))
    )


def test_pushed_tutorial_app_goes_live_on_both_hosts(hosts: dict[str, Host], directory: Path, keys: dict[str, Path]) -> None:
    """The app is a subdirectory of the repository; a shallow clone of it is rejected."""
    tutorial, shallow = (Repository(directory / name, keys["bob"]) for name in ("tutorial", "shallow"))
    (tutorial.directory / "sites").mkdir(parents=True)
    subprocess.run(["cp", "-r", str(ROOT / "files/procfile_app"), str(tutorial.directory / "sites/tutorial")], check=True)
    tutorial.git("init", "--quiet", "--initial-branch=main")
    tutorial.git("commit", "--quiet", "--allow-empty", "--message", "Begin")
    tutorial.git("add", "--all")
    tutorial.git("commit", "--quiet", "--message", "As it is")
    urls = [f"git@{address(host)}:tutorial" for host in hosts.values()]
    tutorial.git("clone", "--quiet", "--depth", "1", f"file://{tutorial.directory}", str(shallow.directory))
    assert "[remote rejected] main -> main (shallow update not allowed)" in shallow.git("push", urls[0], "main")
    tutorial.git("remote", "add", "prod", urls[0])
    for url in urls:
        tutorial.git("remote", "set-url", "--add", "--push", "prod", url)
    with tutorial.start("push", "prod", "main") as process:
        words, _ = process.communicate(timeout=120)
    assert process.returncode == 0, words
    for host in hosts.values():
        assert Site(address(host), "tutorial.test").get().body == b"Hello, world!"
        history = python(host, "print(open('/srv/tutorial/history.json').read())")
        assert [entry["by"] for entry in history] == ["bob_of_the_tests"]


def test_push_shows_each_step_when_it_starts(host: Host, repository: Repository) -> None:
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
    assert fetch_words(host) == "one"


def test_push_loses_no_request(host: Host, repository: Repository) -> None:
    commit = repository.commit("two")
    options = {"host": "shout.test", "get": "/", "post": "", "poll": "", "websocket": "", "connections": 20}
    with Load(address(host), **options) as load:
        status, words = repository.push(host)
        assert status == 0, words
        eventually(lambda: fetch_words(host) == "two")
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
def test_failing_release_is_rejected_with_its_reason(
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
    assert (fetch_words(host), branch(host)) == ("two", before)
    assert find_leftovers(host, "shout") == []


# Malicious pushes


def push_rejected(host: Host, repository: Repository, commit: str) -> str:
    """Push a commit that must be rejected; return the output of git and the host."""
    before = branch(host)
    began = time.monotonic()
    status, words = repository.push(host, "shout", f"{commit}:main")
    assert time.monotonic() - began < 60
    assert status != 0, words
    assert (fetch_words(host), branch(host)) == ("two", before)
    assert find_leftovers(host, "shout") == []
    assert host.check_output("find /var/lib/funnel/git/repositories/shout.git/objects -name '*incoming*'") == ""
    return words


def reject_elsewhere(hosts: dict[str, Host], repository: Repository, commit: str) -> str:
    """Push the same to another app on the other host, which has another git; return the output of git and that host."""
    status, words = repository.push(hosts["debian13"], "tutorial", f"+{commit}:main")
    assert status != 0, words
    return words


def test_tree_bomb_is_rejected_without_blocking_other_pushes(
    hosts: dict[str, Host], host: Host, repository: Repository, directory: Path, keys: dict[str, Path]
) -> None:
    bomb = repository.bomb(10, 10)
    assert len(repository.git("rev-list", "--objects", bomb, "^HEAD").splitlines()) == 1 + 10 + 1
    with repository.start("push", f"git@{address(host)}:shout", f"{bomb}:main") as process:
        other = Repository(directory / "tutorial", keys["bob"])
        other.git("commit", "--quiet", "--allow-empty", "--message", "Concurrent change")
        status, words = other.push(host, "tutorial")
        assert status == 0, words
        process.communicate(timeout=60)
    assert process.returncode != 0
    for words in (push_rejected(host, repository, bomb), reject_elsewhere(hosts, repository, bomb)):
        assert "the commit has more than 100000 files and directories" in words


def test_compression_bomb_is_rejected_without_unpacking(hosts: dict[str, Host], host: Host, repository: Repository) -> None:
    zeros = repository.write("hash-object", "-w", "--stdin", content=bytes((512 << 20) + 1))
    assert int(repository.write("cat-file", "--batch-check=%(objectsize:disk)", content=zeros.encode())) < 1 << 23
    used = "du --summarize --block-size=1M /var/lib/funnel/git/repositories/shout.git"
    before = int(host.check_output(used).split()[0])
    bomb = repository.commit_of(repository.tree(f"100644 blob {zeros}\tzeros"))
    for words in (push_rejected(host, repository, bomb), reject_elsewhere(hosts, repository, bomb)):
        assert "the files of the commit are more than 512 MiB" in words
        assert "source.push" not in words, "root must receive nothing"
    assert int(host.check_output(used).split()[0]) - before < 2


def test_invalid_git_objects_are_rejected(hosts: dict[str, Host], host: Host, repository: Repository) -> None:
    blob = repository.write("hash-object", "-w", "--stdin", content=b"[core]")
    above = b"40000 ..\0" + bytes.fromhex(repository.tree(f"100644 blob {blob}\tconfig"))
    tree = repository.write("hash-object", "-w", "--stdin", "-t", "tree", "--literally", content=above)
    invalid = repository.commit_of(tree)
    for words in (push_rejected(host, repository, invalid), reject_elsewhere(hosts, repository, invalid)):
        assert "contains '..'" in words


@contextmanager
def stalled_pushes(repository: Repository, host: Host, app: str) -> Iterator[None]:
    """Start as many pushes as a host accepts for an app, and keep them waiting."""
    stalled = [
        subprocess.Popen(
            [*repository.ssh, f"git@{address(host)}", f"git-receive-pack '{app}'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(4)
    ]
    try:
        eventually(lambda: host.run("pgrep --count --full 'receive-[p]ack /var'").stdout.strip() == "4")
        yield
    finally:
        for process in stalled:
            process.kill()
            process.communicate()
    eventually(lambda: host.run("pgrep --full 'receive-[p]ack /var'").rc != 0)


def test_stalled_pushes_block_only_their_app(
    hosts: dict[str, Host], host: Host, repository: Repository, directory: Path, keys: dict[str, Path]
) -> None:
    with stalled_pushes(repository, host, "shout"):
        assert "shout: 4 pushes are in progress on this host" in push_rejected(host, repository, "HEAD")
        assert Repository(directory / "tutorial", keys["bob"]).push(host, "tutorial")[0] == 0
    with stalled_pushes(repository, hosts["debian13"], "tutorial"):
        assert "tutorial: 4 pushes are in progress on this host" in reject_elsewhere(hosts, repository, "HEAD")


@contextmanager
def full_repository(host: Host, app: str) -> Iterator[None]:
    """Fill the repository of an app on a host."""
    ballast = f"/var/lib/funnel/git/repositories/{app}.git/objects/pack/ballast"
    host.check_output("fallocate --length 1G %s", ballast)
    try:
        yield
    finally:
        host.check_output("rm %s", ballast)


def test_full_repository_rejects_pushes_with_a_remedy(hosts: dict[str, Host], host: Host, repository: Repository) -> None:
    new = repository.commit_of("HEAD^{tree}")
    with full_repository(host, "shout"), full_repository(hosts["debian13"], "tutorial"):
        rejections = {"shout": push_rejected(host, repository, new), "tutorial": reject_elsewhere(hosts, repository, new)}
    for app, words in rejections.items():
        assert f"{app}: its repository on this host has 10" in words
        assert f"an administrator of the host can remove /var/lib/funnel/git/repositories/{app}.git" in words


@pytest.mark.parametrize(
    ("refspecs", "reason"),
    [
        (("main:other",), "other is not deployed, only main is"),
        (("main:refs/tags/v1",), "v1 is not deployed"),
        (("main", "main:other"), "other is not deployed"),
        ((":main",), "cannot be deleted"),
    ],
)
def test_only_the_configured_branch_can_be_pushed(
    host: Host, repository: Repository, refspecs: tuple[str, ...], reason: str
) -> None:
    status, words = repository.push(host, "shout", *refspecs)
    assert status != 0
    assert reason in words
    assert fetch_words(host) == "two"


def test_key_grants_push_to_its_apps_only(host: Host, repository: Repository, keys: dict[str, Path]) -> None:
    bobs, strangers = (Repository(repository.directory, keys[name]) for name in ("bob", "stranger"))
    assert "may not push to shout, only to tutorial (branch main)" in bobs.push(host)[1]
    assert "may not push to sample" in repository.push(host, "sample")[1]
    assert "Permission denied" in strangers.push(host)[1]
    assert "this key may only git push to tutorial (branch main)" in bobs.git(
        "clone", f"git@{address(host)}:tutorial", f"{repository.directory}/copy"
    )
    for command in OTHER_COMMANDS:
        response = ssh(repository, f"git@{address(host)}", command)
        assert (response.returncode, response.stdout) == (1, ""), command
        assert "this key" in response.stderr, command
    assert ssh(repository, "-W", "127.0.0.1:22", f"git@{address(host)}").stdout == ""


def test_git_user_runs_one_program_as_root_and_reads_no_secrets(host: Host) -> None:
    allowed = host.check_output("sudo --list --other-user=git")
    assert [line.strip() for line in allowed.splitlines() if "NOPASSWD" in line] == [
        "(root) NOPASSWD: /usr/local/lib/funnel/push ^deploy [a-z][a-z0-9_-]* [A-Za-z0-9@._+/-]+$"
    ]
    for path in ("/etc/funnel/push/shout.json", "/srv/shout/live/release/source.tar", "/srv/shout/live/release/secrets.json"):
        host.check_output("test -e %s", path)
        assert host.run("setpriv --reuid=git --regid=git --clear-groups cat %s", path).rc != 0
    assert host.run("setpriv --reuid=git --regid=git --clear-groups touch %s", "/var/lib/funnel/git/.ssh/more").rc != 0


def test_settings_are_deployed_without_changing_the_pushed_code(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    shown = expect_success(run_deploy(entries, directory, "--diff", **CHANGED))
    response = Site(address(host), "shout.test").get().json
    assert response == {"words": "two", "theme": "light", "secret": len(SECRET) + 1}
    assert SECRET not in shown
    repository.commit("three")
    assert repository.push(host)[0] == 0
    assert Site(address(host), "shout.test").get().json == response | {"words": "three"}


def test_rollback_restores_previous_push_and_next_run_keeps_it(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    repository.commit("four")
    assert repository.push(host)[0] == 0
    expect_success(run_playbook("playbooks/rollback.yml", "debian12", "-e", "app=shout"))
    assert fetch_words(host) == "three"
    assert "changed=0" in expect_success(run_deploy(entries, directory, **CHANGED))
    assert fetch_words(host) == "three"


def test_second_of_concurrent_pushes_waits_and_is_rejected(host: Host, repository: Repository, directory: Path) -> None:
    other = repository.clone(directory / "other")
    with hold_build(host):
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
    assert (fetch_words(host), branch(host)) == ("first", first)


def test_deploy_overtaken_by_push_does_not_revert_it(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path
) -> None:
    commit = repository.commit("overtaking")
    options = ["-e", "app=shout", *extra_vars(directory, apps(**entries))]
    with hold_build(host), start_playbook("playbooks/deploy.yml", "debian12", *options) as playbook:
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
    assert fetch_words(host) == "overtaking"


def test_killed_push_leaves_nothing_incomplete(host: Host, repository: Repository) -> None:
    repository.commit("interrupted")
    with hold_build(host):
        process = repository.start("push", f"git@{address(host)}:shout", "main")
        eventually(lambda: "build of a push" in host.run("cat /srv/shout/.lock").stdout, 90)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert fetch_words(host) == "overtaking"
    commit = repository.commit("retried")
    # The interrupted push may still finish and update the branch.
    eventually(lambda: repository.push(host)[0] == 0, 90)
    assert (fetch_words(host), branch(host)) == ("retried", commit)
    assert find_leftovers(host, "shout") == []


def test_removed_key_can_no_longer_push(
    host: Host, repository: Repository, entries: dict[str, Any], directory: Path, keys: dict[str, Path]
) -> None:
    bobs = keys["bob"].with_suffix(".pub").read_text()
    expect_success(run_deploy(entries, directory, source={"push": "main", "keys": [bobs]}))
    repository.commit("too late")
    status, words = repository.push(host)
    assert status != 0
    assert "may not push to shout" in words
    assert Repository(repository.directory, keys["bob"]).push(host)[0] == 0
    assert fetch_words(host) == "too late"


def test_removed_app_leaves_no_keys_or_code(host: Host, repository: Repository, entries: dict[str, Any], directory: Path) -> None:
    remaining = apps(tutorial=entries["tutorial"])
    expect_success(run_playbook("playbooks/remove.yml", "debian12", "-e", "app=shout", *extra_vars(directory, remaining)))
    remains = host.check_output("find /srv /etc /var/lib/funnel /var/log -name '*shout*'")
    assert remains == ""
    assert "shout" not in host.check_output("cat /var/lib/funnel/git/.ssh/authorized_keys")
    assert "may not push to shout" in repository.push(host)[1]
