from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.action.push import push_program
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building import release
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy, receiving
from ansible_collections.funnel.tornado.plugins.module_utils.push.policy import PushError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

COMMIT = "8f2b1c0d9e3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c"
OTHER_COMMIT = COMMIT[::-1]
NONE = "0" * 40


def key(number: int, comment: str = "") -> str:
    """Return a public key as written by ssh-keygen."""
    kind = b"ssh-ed25519"
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, bytes([number]) * 32))
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}".rstrip()


ALICE, BOB = key(1, "alice@laptop"), key(2)


def app(*keys: str, branch: str = "main", **entry: Any) -> dict[str, Any]:
    return {"source": {"push": branch, "keys": list(keys)}, "run": {"app": "a:b"}, **entry}


def apps() -> dict[str, App]:
    return load({"shop": app(ALICE, BOB, domains=["shop.test"]), "blog": app(ALICE, branch="stable")})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"push": "main"}, "source.keys: is missing"),
        ({"push": "-f", "keys": []}, "source.push: must be the name of a branch"),
        ({"push": "a..b", "keys": []}, "source.push: must be the name of a branch"),
        ({"push": "main", "keys": ["alice"]}, "source.keys[0]: must be a line of an SSH public key"),
        ({"push": "main", "keys": [f'command="id" {ALICE}']}, "source.keys[0]: must be a line of an SSH public key"),
        ({"push": "main", "keys": [f"{ALICE}\n{BOB}"]}, "source.keys[0]: must be a line of an SSH public key"),
        ({"push": "main", "keys": [ALICE, "ssh-ed25519 AAAA bob"]}, "source.keys[1]: is not a complete key"),
        ({"push": "main", "keys": [BOB.replace("ed25519", "rsa")]}, "source.keys[0]: is not a complete key"),
        ({"push": "main", "keys": [], "version": "v1"}, "source.version: requires source.git or source.package"),
        ({"git": "https://git.test/shop", "keys": [ALICE]}, "source.keys: requires source.push"),
    ],
)
def test_a_malformed_branch_or_key_is_reported(source: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidDataError) as caught:
        load({"shop": {"source": source, "run": {"app": "a:b"}}})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"tornado_apps.shop.{expected}")


def test_each_key_has_one_line_that_forces_the_program_with_its_apps() -> None:
    alice, bob = policy.authorized_keys(apps()).splitlines()
    public = ALICE.removesuffix(" alice@laptop")
    assert alice == f'restrict,command="/usr/local/lib/funnel/push serve alice@laptop shop=main blog=stable" {public}'
    assert bob.startswith('restrict,command="/usr/local/lib/funnel/push serve ')
    assert bob.endswith(f' shop=main" {BOB}')


def test_a_pusher_is_named_by_the_comment_or_fingerprint_of_the_key(tmp_path: Path) -> None:
    blob = BOB.split()[1]
    assert policy.pusher_name(blob, "Alice of the shop") == "Alice_of_the_shop"
    for nothing in ("", '"; id #', "$(id)", "äöü"):
        assert set(policy.pusher_name(blob, nothing)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/")
    (tmp_path / "key").write_text(BOB)
    shown = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "key")], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == f"SHA256:{policy.pusher_name(blob, '')}"


@pytest.mark.parametrize("path", ["shop", "shop.git", "/shop", "/shop.git"])
def test_the_requested_app_is_the_path_of_the_repository(path: str) -> None:
    assert policy.requested_app(f"git-receive-pack '{path}'", {"shop": "main"}) == "shop"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "this key may only git push to shop (branch main)"),
        ("id", "this key may only git push"),
        ("git-upload-pack 'shop'", "this key may only git push"),
        ("git-receive-pack 'shop", "this key may only git push"),
        ("git-receive-pack 'shop' 'blog'", "this key may only git push"),
        ("git-receive-pack 'shop'; id", "this key may only git push"),
        ("git-receive-pack --help", "may not push to --help"),
        ("git-receive-pack 'blog'", "may not push to blog, only to shop (branch main)"),
        ("git-receive-pack '../shop'", "may not push to ../shop"),
    ],
)
def test_any_command_but_a_push_to_an_app_of_the_key_is_rejected(command: str, reason: str) -> None:
    with pytest.raises(PushError) as caught:
        policy.requested_app(command, {"shop": "main"})
    assert reason in str(caught.value)


def test_a_push_updates_the_branch() -> None:
    assert policy.parse_update([f"{NONE} {COMMIT} refs/heads/main\n"], "main") == (NONE, COMMIT)
    assert policy.parse_update([f"{COMMIT} {OTHER_COMMIT} refs/heads/main\n"], "main") == (COMMIT, OTHER_COMMIT)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f"{NONE} {COMMIT} refs/heads/other\n"], "other is not deployed, only main is"),
        ([f"{NONE} {COMMIT} refs/tags/main\n"], "main is not deployed"),
        ([f"{NONE} {COMMIT} refs/heads/main\n", f"{NONE} {COMMIT} refs/tags/v1\n"], "v1 is not deployed"),
        ([f"{COMMIT} {NONE} refs/heads/main\n"], "cannot be deleted"),
    ],
)
def test_a_push_may_only_update_the_branch(lines: list[str], reason: str) -> None:
    with pytest.raises(PushError) as caught:
        policy.parse_update(lines, "main")
    assert reason in str(caught.value)


def run_program(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the packed program in isolation, as on a host."""
    file = directory / "push"
    file.write_bytes(push_program())
    return subprocess.run(
        [sys.executable, "-I", str(file), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_is_reproducible_and_self_contained(tmp_path: Path) -> None:
    assert push_program() == push_program()
    refused = run_program(tmp_path, "serve", "alice", "shop=main", SSH_ORIGINAL_COMMAND="git-upload-pack 'shop'")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "this key may only git push to shop (branch main)\n"


def test_the_program_contains_everything_for_the_deployment_as_root(tmp_path: Path) -> None:
    refused = run_program(tmp_path, "deploy", "no-app-of-this-host", "alice")
    assert refused.stderr == "no-app-of-this-host: this host no longer accepts pushes to it\n"


def git(directory: Path, *arguments: str) -> bytes:
    """Return the output of git."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "commit.gpgSign=false"]
    return subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True).stdout


def commit(directory: Path) -> None:
    (directory / "file").write_text("a")
    for arguments in (["init", "--quiet", "--initial-branch=main"], ["add", "file"], ["commit", "--quiet", "--message", "a"]):
        git(directory, *arguments)


def packed(directory: Path) -> bytes:
    """Return the archive of a commit."""
    commit(directory)
    return git(directory, "archive", "HEAD")


@dataclass
class Receiver:
    """A repository with the hook of a host, and a fake sudo that records its input."""

    directory: Path
    clone: Path
    repository: Path

    def push(self, what: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "PUSH_APP": "shop",
            "PUSH_BRANCH": "main",
            "PUSH_BY": "a",
            "PUSH_LOCK": "3",
            "PUSH_RECEIVED": "3",
        }
        command = ["git", "-C", str(self.clone), "push", str(self.repository), f"{what}:refs/heads/main"]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60)

    @property
    def deployed(self) -> bool:
        return (self.directory / "deployed").exists()


@pytest.fixture
def receiver(tmp_path: Path) -> Receiver:
    clone, repository, programs = (tmp_path / name for name in ("clone", "shop.git", "bin"))
    for path in (clone, repository, programs):
        path.mkdir()
    commit(clone)
    git(repository, "init", "--quiet", "--bare")
    (programs / "push").write_bytes(push_program())
    (repository / "hooks/pre-receive").write_text(
        f"#!/bin/sh\nexec {sys.executable} -I {programs}/push receive 3>{tmp_path}/lock\n"
    )
    (programs / "sudo").write_text(f"#!/bin/sh\ncat >{tmp_path}/deployed\n")  # the deployment as root
    for path in (repository / "hooks/pre-receive", programs / "sudo"):
        path.chmod(0o755)
    return Receiver(tmp_path, clone, repository)


@pytest.mark.parametrize(("what", "reason"), [("main", ""), ("v1^{commit}", ""), ("v1", "a tag"), ("main^{tree}", "a tree")])
def test_only_a_commit_can_be_deployed(receiver: Receiver, what: str, reason: str) -> None:
    git(receiver.clone, "tag", "--annotate", "--message=1", "v1")
    finished = receiver.push(what)
    if not reason:
        assert finished.returncode == 0, finished.stderr
    else:
        assert f"main must point to a commit, but this is {reason}" in finished.stderr
    assert receiver.deployed is not bool(reason)


def tree(directory: Path, *lines: str) -> str:
    """Create a tree from lines of git ls-tree; return its object ID."""
    command = ["git", "-C", str(directory), "mktree", "-z"]
    listed = "".join(f"{line}\0" for line in lines).encode()
    return subprocess.run(command, input=listed, check=True, capture_output=True).stdout.decode().strip()


def nested(directory: Path, levels: int, width: int, name: str = "d") -> str:
    """Create ``levels`` nested trees, each with ``width`` entries for the next; return the outermost."""
    found = git(directory, "rev-parse", "HEAD:file").decode().strip()
    kind = "100644 blob"
    for _ in range(levels):
        found = tree(directory, *(f"{kind} {found}\t{name}{number}" for number in range(width)))
        kind = "040000 tree"
    return found


@pytest.mark.parametrize(
    ("levels", "width", "name", "reason"),
    [
        (10, 10, "d", "the commit has more than 100000 files and directories"),
        (300, 1, "directory", "the commit has a path of more than 1000 bytes: "),
        (1, 1, "a\nb\x1b", r"the commit has a file name with control characters: a\nb\x1b0"),
        (1, 1, "\x9b2Jgood", ""),
    ],
    ids=["bomb", "deep", "control characters", "others"],
)
def test_a_commit_beyond_the_limits_never_reaches_root(
    receiver: Receiver, levels: int, width: int, name: str, reason: str
) -> None:
    top = nested(receiver.clone, levels, width, name)
    began = time.monotonic()
    finished = receiver.push(git(receiver.clone, "commit-tree", "-m", "a", top).decode().strip())
    assert time.monotonic() - began < 30
    assert reason in finished.stderr
    assert finished.returncode == bool(reason), finished.stderr
    assert receiver.deployed is not bool(reason)


def test_total_size_and_submodules_are_checked_before_unpacking() -> None:
    line = f"100644 blob {COMMIT} {policy.MAX_BYTES // 2 + 1}\tfile".encode()
    policy.require_bounds([line])
    with pytest.raises(PushError, match="the files of the commit are more than 512 MiB"):
        policy.require_bounds([line, line])
    with pytest.raises(PushError, match=r"submodules, which a push does not include; use source\.git"):
        policy.require_bounds([f"160000 commit {COMMIT}       -\tmodule".encode()])


def test_an_overlong_path_is_not_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"100644 blob " + b"x" * 3000)
    with pytest.raises(PushError, match="a path of more than 1000 bytes"):
        next(policy.read_tree(reading))
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_full_repository_accepts_no_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "REPOSITORIES", tmp_path)
    monkeypatch.setattr(policy, "MAX_REPOSITORY_SIZE", 1 << 20)
    pack, left, now = (tmp_path / "shop.git/objects" / name for name in ("pack", "incoming-1", "tmp_objdir-incoming-2"))
    for directory in (pack, left, now):
        directory.mkdir(parents=True)
        (directory / "pack").write_bytes(bytes(300_000))
    os.utime(left, (1, 1))
    assert 1 << 17 < policy.available_size("shop") < 1 << 19
    assert not left.exists()
    assert now.exists()
    (pack / "more").write_bytes(bytes(1 << 20))
    with pytest.raises(PushError, match=r"shop: its repository on this host has 1 MiB, the maximum is 1; .* can remove"):
        policy.available_size("shop")


def test_resource_limits_are_restored_for_the_deployment_as_root() -> None:
    code = (
        "import resource, sys\n"
        "from ansible_collections.funnel.tornado.plugins.module_utils.push import policy\n"
        "before = {kind: resource.getrlimit(kind) for kind in policy.LIMITS}\n"
        "policy.lower_limits()\n"
        "assert all(resource.getrlimit(kind)[0] == most for kind, most in policy.LIMITS.items())\n"
        "policy.restore_limits()\n"
        "assert before == {kind: resource.getrlimit(kind) for kind in policy.LIMITS}\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


def test_an_archive_must_arrive_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "TRANSFER_TIMEOUT", 0.3)
    reading, writing = os.pipe()
    os.write(writing, packed(tmp_path)[:1000])
    with pytest.raises(BuildError, match=r"key: the push did not arrive within 0\.3 s; push again"):
        receiving.receive(io.BufferedReader(receiving.TimedReader(reading, "key")), tmp_path / "archive", "key")
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_received_archive_has_the_commit_and_is_private_to_root(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    found = receiving.receive(io.BytesIO(packed(tmp_path)), archive, "key")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert found == release.PushedSource(archive, head.strip())
    assert archive.stat().st_mode & 0o777 == 0o600


def test_an_incomplete_archive_is_rejected(tmp_path: Path) -> None:
    whole = packed(tmp_path)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    for content in (b"", whole[:600], whole.rstrip(b"\0"), plain.getvalue(), bytes(10240), b"no archive" + bytes(1024)):
        with pytest.raises(BuildError, match="key: the push arrived incomplete"):
            receiving.receive(io.BytesIO(content), tmp_path / "archive", "key")


def test_receiving_does_not_overwrite_the_archive_of_a_release(tmp_path: Path) -> None:
    kept, archive = tmp_path / "kept", tmp_path / "archive"
    receiving.receive(io.BytesIO(packed(tmp_path)), archive, "key")
    before = archive.read_bytes()
    os.link(archive, kept)  # as a build does, and then the power is cut
    with pytest.raises(BuildError):
        receiving.receive(io.BytesIO(b"no archive"), archive, "key")
    assert kept.read_bytes() == before


def test_an_oversized_archive_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_BYTES", 1 << 20)
    with pytest.raises(BuildError, match="the files of the commit are more than 1 MiB"):
        receiving.receive(io.BytesIO(bytes(2 << 20)), tmp_path / "archive", "key")


def test_the_last_pushed_source_is_that_of_the_live_release(tmp_path: Path) -> None:
    layout = Layout("shop", tmp_path)
    assert release.live_pushed_source(layout) is None
    layout.release("r1").mkdir(parents=True)
    layout.manifest("r1").write_text(ReleaseManifest(app="shop", id="r1", revision=COMMIT).to_json())
    layout.slot("a").mkdir(parents=True)
    (layout.slot("a") / "release").symlink_to("../../releases/r1")
    layout.live.symlink_to("slots/a")
    assert release.live_pushed_source(layout) is None  # built from another source
    layout.pushed_source("r1").touch()
    assert release.live_pushed_source(layout) == release.PushedSource(layout.pushed_source("r1"), COMMIT)
