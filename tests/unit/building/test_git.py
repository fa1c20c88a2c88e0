from __future__ import annotations

import json
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building import git as building_git
from ansible_collections.funnel.tornado.plugins.module_utils.building.git import (
    Unpack,
    _ssh_command,
    export_commit,
    fetch_commit,
    query_commit,
    submodule_url,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system import unpacking
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "protocol.file.allow=always", "-c", "tag.gpgSign=false"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(directory: Path, **files: str) -> Path:
    directory.mkdir()
    git(directory, "init", "--quiet", "--initial-branch", "main")
    commit(directory, **files)
    return directory


def commit(directory: Path, **files: str) -> str:
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--message", "a", "--allow-empty")
    return git(directory, "rev-parse", "HEAD")


def app(url: Path | str, version: str | None = None, **keys: str) -> App:
    source: dict[str, Any] = {"git": str(url), **({"version": version} if version else {}), **keys}
    return load({"shop": {"source": source, "run": {"app": "a:b"}}})["shop"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return repository(tmp_path / "shop", web="1")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout("shop", tmp_path / "host")


def test_versions_are_branches_tags_commits_or_the_default_branch(shop: Path, layout: Layout) -> None:
    first = git(shop, "rev-parse", "HEAD")
    git(shop, "tag", "--annotate", "v1", "--message", "a")
    git(shop, "branch", "stable")
    second = commit(shop, web="2")
    for version, expected in (("v1", first), ("stable", first), (first, first), ("main", second), (None, second)):
        assert fetch_commit(layout, app(shop, version)) == expected
        assert query_commit(layout, app(shop, version)) == expected


def test_versions_are_fetched_from_a_repository_whose_default_branch_does_not_exist(shop: Path, layout: Layout) -> None:
    git(shop, "symbolic-ref", "HEAD", "refs/heads/renamed")
    assert fetch_commit(layout, app(shop, "main")) == git(shop, "rev-parse", "main")
    with pytest.raises(BuildError, match="couldn't find remote ref HEAD"):
        fetch_commit(layout, app(shop))


def test_branches_are_fetched_and_cached_commits_are_not(shop: Path, layout: Layout) -> None:
    first = fetch_commit(layout, app(shop, "main"))
    second = commit(shop, web="2")
    assert fetch_commit(layout, app(shop, "main")) == second
    shop.rename(shop.with_name("moved"))
    assert fetch_commit(layout, app(shop, first)) == first


def test_unreachable_commits_are_fetched_directly(shop: Path, layout: Layout) -> None:
    lost = commit(shop, web="2")
    git(shop, "reset", "--quiet", "--hard", "HEAD~1")
    assert fetch_commit(layout, app(shop, lost)) == lost


def test_commits_of_a_worktree_are_fetched(shop: Path, layout: Layout, tmp_path: Path) -> None:
    worktree = tmp_path / "worktree"
    git(shop, "worktree", "add", "--quiet", "-b", "topic", str(worktree))
    topic = commit(worktree, web="2")
    for version in (None, "topic", topic):
        assert fetch_commit(layout, app(worktree, version)) == query_commit(layout, app(worktree, version)) == topic
    assert fetch_commit(layout, app(worktree, "main")) == git(shop, "rev-parse", "main") != topic


def test_commits_of_a_shallow_repository_are_fetched_and_exported(shop: Path, layout: Layout, tmp_path: Path) -> None:
    first, last = git(shop, "rev-parse", "HEAD"), commit(shop, web="2")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{shop}", str(shallow))
    for version in (None, "main", last, last[:8]):
        shutil.rmtree(layout.mirror, ignore_errors=True)
        assert fetch_commit(layout, app(shallow, version)) == last
    export_commit(layout, app(shallow), last, unpacker(tmp_path / "src"))
    assert (tmp_path / "src/web.py").read_text() == "2"
    with pytest.raises(BuildError, match=f"has no branch, tag or commit {first}"):
        fetch_commit(layout, app(shallow, first))
    git(shallow, "fetch", "--quiet", "--unshallow")
    assert fetch_commit(layout, app(shallow, first)) == first
    assert fetch_commit(layout, app(shallow, "main")) == last


def test_branches_take_precedence_over_abbreviated_commits(shop: Path, layout: Layout) -> None:
    first = git(shop, "rev-parse", "HEAD")
    second = commit(shop, web="2")
    assert query_commit(layout, app(shop, first[:7])) is None, "only a fetch can tell"
    assert fetch_commit(layout, app(shop, first[:7])) == first
    assert query_commit(layout, app(shop, first[:7])) == first
    git(shop, "branch", first[:8], second)
    assert fetch_commit(layout, app(shop, first[:8])) == query_commit(layout, app(shop, first[:8])) == second
    with pytest.raises(BuildError, match="has no branch, tag or commit 0000000"):
        fetch_commit(layout, app(shop, "0000000"))


def test_missing_versions_and_repositories_are_reported(shop: Path, layout: Layout) -> None:
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.source\.version: .* has no branch, tag or commit v9"):
        fetch_commit(layout, app(shop, "v9"))
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.source\.version: .* has no branch or tag v9"):
        query_commit(layout, app(shop, "v9"))
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.source\.git: .*/nowhere cannot be fetched"):
        fetch_commit(layout, app(shop.with_name("nowhere")))


def test_query_commit_writes_nothing(shop: Path, layout: Layout) -> None:
    query_commit(layout, app(shop))
    assert not layout.home.exists()


@pytest.mark.parametrize("leftover", ["refs/heads/main.lock", ""])
def test_fetch_recovers_from_an_interrupted_fetch(shop: Path, layout: Layout, leftover: str) -> None:
    fetch_commit(layout, app(shop, "main"))
    if leftover:
        (layout.mirror / leftover).parent.mkdir(parents=True, exist_ok=True)
        (layout.mirror / leftover).touch()
    else:
        shutil.rmtree(layout.mirror)
        layout.mirror.mkdir()
    new = commit(shop, later="1")
    assert fetch_commit(layout, app(shop, "main")) == new


@pytest.fixture
def nested(tmp_path: Path, shop: Path) -> Path:
    """Add the submodule `lib` at a relative URL to the shop; `lib` has the submodule `deep`."""
    repository(tmp_path / "deep", deep="1")
    lib = repository(tmp_path / "lib", lib="1")
    git(lib, "submodule", "--quiet", "add", "../deep", "deep")
    commit(lib)
    git(shop, "submodule", "--quiet", "add", "../lib", "vendor/lib")
    commit(shop)
    return shop


def unpacker(directory: Path) -> Unpack:
    """Return a function that unpacks like the builder on a host."""
    directory.mkdir(exist_ok=True)

    def unpack(stream: int, path: str) -> None:
        with open(stream, "rb", closefd=False) as file:
            unpacking.Unpacking(unpacking.make_subdirectory(directory, path)).unpack(file)

    return unpack


def test_submodules_do_not_follow_links_of_the_parent(
    nested: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    target = tmp_path / "authorized_keys"
    (nested / "vendor/source.tar").symlink_to(target)
    commit(nested)
    export_commit(layout, app(nested), fetch_commit(layout, app(nested)), unpacker(tmp_path / "src"))
    assert (tmp_path / "src/vendor/source.tar").is_symlink(), "the attack is in place"
    assert not target.exists()


def test_commits_with_excessive_files_are_rejected(shop: Path, layout: Layout, tmp_path: Path) -> None:
    """Nest a tree that contains its predecessor 64 times: a dozen objects contain 64**12 files."""
    tree = git(shop, "rev-parse", "HEAD^{tree}")
    for _level in range(12):
        entries = "".join(f"040000 tree {tree}\td{number:02}\n" for number in range(64))
        result = subprocess.run(["git", "-C", str(shop), "mktree"], input=entries, capture_output=True, text=True, check=True)
        tree = result.stdout.strip()
    git(shop, "update-ref", "refs/heads/main", git(shop, "commit-tree", tree, "-m", "bomb"))
    with pytest.raises(BuildError, match="has too many file names: more than 64 MiB"):
        export_commit(layout, app(shop), fetch_commit(layout, app(shop)), unpacker(tmp_path / "src"))


def test_objects_that_expand_beyond_the_memory_limit_are_rejected(
    shop: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building_git, "MAX_MEMORY", 32 << 20)
    git(shop, "config", "core.bigFileThreshold", "1m")  # the server has the limits of this process here
    (shop / "large").write_bytes(bytes((64 << 20) + 1))
    commit(shop)
    assert fetch_commit(layout, app(shop)), "large files are not loaded into memory"
    (shop / "bomb").write_bytes(bytes((64 << 20) - 1))  # 64 KiB in the repository
    commit(shop)
    with pytest.raises(BuildError, match=r"cannot be fetched from this host: .*[Oo]ut of memory"):
        fetch_commit(layout, app(shop))


def test_threads_of_a_fetch_are_limited_whatever_the_number_of_cpus(
    shop: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the pack of a small fetch, like that of a large one, and trace the effective configuration of each process of git."""
    (tmp_path / "config").write_text("[fetch]\nunpackLimit = 1\n[pack]\nthreads = 64\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(tmp_path / "trace"))
    monkeypatch.setenv("GIT_TRACE2_CONFIG_PARAMS", "pack.threads")
    fetch_commit(layout, app(shop))
    events = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    [process] = [event["sid"] for event in events if event["event"] == "cmd_name" and event["name"] == "index-pack"]
    threads = [event["value"] for event in events if event["sid"] == process and event["event"] == "def_param"]
    assert threads[-1] == "4"


def test_export_ignores_filters_in_gitattributes(shop: Path, layout: Layout, tmp_path: Path) -> None:
    (shop / ".gitattributes").write_text("web.py export-subst filter=evil\n")
    (shop / "signature").write_text("$Format:%G?$")
    ran = tmp_path / "ran"
    config = tmp_path / "config"
    config.write_text(f'[filter "evil"]\nsmudge = touch {ran}\n[gpg]\nprogram = touch\n')
    commit(shop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(config))
        export_commit(layout, app(shop), fetch_commit(layout, app(shop)), unpacker(tmp_path / "src"))
        assert not ran.exists()
        git(shop, "archive", "--format=tar", "--output", str(tmp_path / "x.tar"), "HEAD")
    assert ran.exists(), "git itself runs the filter"


def test_pointers_of_git_lfs_in_a_commit_are_refused_by_name(shop: Path, layout: Layout, tmp_path: Path) -> None:
    """The filter that git-lfs would have configured on the controller has no effect on a host."""
    (shop / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    (shop / "static").mkdir()
    (shop / "static/logo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    commit(shop)
    with pytest.raises(unpacking.UnpackError, match=r"^static/logo\.png is a Git LFS pointer instead of the file"):
        export_commit(layout, app(shop), fetch_commit(layout, app(shop)), unpacker(tmp_path / "src"))


def test_nested_submodules_are_exported(nested: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    pinned = fetch_commit(layout, app(nested))
    commit(tmp_path / "lib", lib="2")
    export_commit(layout, app(nested), pinned, unpacker(tmp_path / "src"))
    assert (tmp_path / "src/web.py").read_text() == "1"
    assert (tmp_path / "src/vendor/lib/lib.py").read_text() == "1", "at the commit that the shop pins"
    assert (tmp_path / "src/vendor/lib/deep/deep.py").read_text() == "1"
    assert not list(tmp_path.rglob("*.tar"))


def test_submodules_cannot_be_files_of_the_host(nested: Path, layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="transport 'file' not allowed"):
        export_commit(layout, app(nested), fetch_commit(layout, app(nested)), unpacker(tmp_path / "src"))


class Members(SimpleHTTPRequestHandler):
    """Serves the directory ``public`` to everyone, and all others to those with a password."""

    asked: ClassVar[set[tuple[str, bool]]] = set()

    def do_GET(self) -> None:
        top, credentials = self.path.split("/")[1], "Authorization" in self.headers
        self.asked.add((top, credentials))
        if credentials or top == "public":
            return super().do_GET()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="members"')
        self.end_headers()
        return None

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Serve the temporary directory by HTTP and return its URL."""
    Members.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Members, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, args=[0.05]).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["netrc", "helper", "header", "asked"])
def test_submodules_are_fetched_without_credentials_of_root(
    kind: str, served: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committers choose the URLs of submodules, such as that of another team's repository on the same server."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "askpass").write_text("#!/bin/sh\necho root\n")
    (tmp_path / "askpass").chmod(0o755)
    config = {
        "netrc": "",
        "helper": '[credential]\nhelper = "!echo username=root; echo password=secret; true"\n',
        "header": f'[http "{served}/"]\nextraHeader = "Authorization: Basic cm9vdDpzZWNyZXQ="\n',
        "asked": f"[core]\naskPass = {tmp_path / 'askpass'}\n",
    }
    (home / ".gitconfig").write_text(config[kind])
    if kind == "netrc":
        (home / ".netrc").write_text("machine 127.0.0.1 login root password secret\n")
    for team, name in (("public", "lib"), ("secret", "plans"), ("shop", "web"), ("shop", "stolen")):
        (tmp_path / team).mkdir(exist_ok=True)
        work = repository(tmp_path / f"{team}-{name}", code="1")
        for path in {"web": ["public/lib"], "stolen": ["secret/plans"]}.get(name, []):
            git(work, "submodule", "--quiet", "add", str(tmp_path / path), "sub")
            git(work, "config", "--file", ".gitmodules", "submodule.sub.url", f"../../{path}")
            commit(work)
        git(tmp_path, "clone", "--quiet", "--bare", str(work), f"{team}/{name}")
        git(tmp_path / team / name, "update-server-info")
    shop, stolen = (app(f"{served}/shop/{name}") for name in ("web", "stolen"))
    export_commit(layout, shop, fetch_commit(layout, shop), unpacker(tmp_path / "src"))
    assert (tmp_path / "src/sub/code.py").read_text() == "1"
    pinned = fetch_commit(layout, stolen)
    with pytest.raises(BuildError, match="as a submodule with no credentials but deploy_key: "):
        export_commit(layout, stolen, pinned, unpacker(tmp_path / "src"))
    assert ("shop", True) in Members.asked, "the credentials are sent for the repository of the inventory"
    assert {asked for asked in Members.asked if asked[0] != "shop"} == {("public", False), ("secret", False)}


@pytest.mark.parametrize(
    ("url", "base", "expected"),
    [
        ("https://b.test/lib.git", "https://a.test/shop.git", "https://b.test/lib.git"),
        ("../lib.git", "https://a.test/team/shop.git", "https://a.test/team/lib.git"),
        ("../../lib.git", "https://a.test/team/shop.git/", "https://a.test/lib.git"),
        ("./lib.git", "ssh://git@a.test/shop.git", "ssh://git@a.test/shop.git/lib.git"),
        ("../lib.git", "git@a.test:team/shop.git", "git@a.test:team/lib.git"),
        ("../lib.git", "git@a.test:shop.git", "git@a.test:lib.git"),
    ],
)
def test_submodule_urls_are_resolved(url: str, base: str, expected: str) -> None:
    assert submodule_url(url, base) == expected


def options(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)


def test_deploy_keys_are_readable_only_while_git_runs(shop: Path, layout: Layout) -> None:
    source = app(shop, deploy_key="-----BEGIN KEY-----\nhunter2\n-----END KEY-----").source
    with _ssh_command(layout, source, remember=True) as command:
        assert "hunter2" not in command
        assert options(command)["IdentitiesOnly"] == "yes"
        key = Path(options(command)["IdentityFile"])
        assert key.read_text().endswith("hunter2\n-----END KEY-----\n")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not key.exists()


def test_host_keys_are_configured_or_remembered(shop: Path, layout: Layout) -> None:
    with _ssh_command(layout, app(shop, host_key="a.test ssh-ed25519 AAAA").source, remember=True) as command:
        assert options(command)["StrictHostKeyChecking"] == "yes"
        assert Path(options(command)["UserKnownHostsFile"]).read_text() == "a.test ssh-ed25519 AAAA\n"
    with _ssh_command(layout, app(shop).source, remember=True) as command:
        assert options(command)["StrictHostKeyChecking"] == "accept-new"
        assert options(command)["UserKnownHostsFile"] == str(layout.home / "known_hosts")
    with _ssh_command(layout, app(shop).source, remember=False) as command:
        assert options(command)["UserKnownHostsFile"].startswith("/proc/"), "check mode stores no host keys"
