from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.kept_files import (
    MIN_SIZE,
    KeptFileError,
    complete_archive,
    held_files,
)
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import (
    SourceError,
    archive_revision,
    copy_archive,
    digests,
    files,
    locate,
    pack,
    revision,
)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/web.py").write_text("print('shop')\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    return tmp_path


def packed(directory: Path, *held: str) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "source")
        pack(directory, file, revision(directory), held)
        return file.read_bytes()


def members(packed: bytes) -> dict[str, tuple[bytes, int, float, str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        contents = {member.name: file.read() for member in archive if (file := archive.extractfile(member)) and member.isreg()}
        return {
            member.name: (member.type, member.mode, member.mtime, member.linkname, contents.get(member.name, b""))
            for member in archive
        }


def names(directory: Path) -> list[str]:
    return [str(path) for path in files(directory)]


def test_without_git_all_files_but_those_of_tools_are_packed(app: Path) -> None:
    for name in (".hg/store", "__pycache__/web.pyc", ".venv/bin/python", "shop/old.pyc"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).touch()
    assert names(app) == ["run.sh", "shop/web.py"]


def test_untracked_files_are_packed_and_ignored_ones_are_not(app: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(app)], check=True)
    (app / ".gitignore").write_text("*.log\n")
    (app / "debug.log").touch()
    assert names(app) == [".gitignore", "run.sh", "shop/web.py"]


def test_a_deleted_tracked_file_is_not_packed(app: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(app)], check=True)
    subprocess.run(["git", "-C", str(app), "add", "."], check=True)
    (app / "run.sh").unlink()
    assert names(app) == ["shop/web.py"]


def test_revision_ignores_modification_times(app: Path) -> None:
    before = revision(app)
    os.utime(app / "run.sh", (0, 0))
    assert revision(app) == before


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_revision_changes_with_names_contents_modes_and_links(app: Path, change: str) -> None:
    before = revision(app)
    script = app / "run.sh"
    if change == "content":
        script.write_text("#!/bin/bash\n")
    elif change == "name":
        script.rename(app / "start.sh")
    elif change == "mode":
        script.chmod(0o644)
    else:
        (app / "link").symlink_to("run.sh")
    assert revision(app) != before


def test_archive_is_owned_by_root_and_keeps_times_and_execute_bits(app: Path) -> None:
    os.utime(app / "run.sh", (1_000_000_000, 1_000_000_000))
    with tarfile.open(fileobj=io.BytesIO(packed(app))) as archive:
        member = archive.getmember("run.sh")
        assert (member.uid, member.mode, member.mtime) == (0, 0o755, 1_000_000_000)
        assert archive.getmember("shop/web.py").mode == 0o644


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret"])
def test_a_link_out_of_the_source_is_rejected(app: Path, target: str) -> None:
    (app / "link").symlink_to(target)
    with pytest.raises(SourceError, match="outside of the source"):
        packed(app)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/shop", "there is no directory {here}/no/such/shop or /play/no/such/shop"),
        ("x" * 300, f"{{here}}/{'x' * 300} cannot be read: File name too long"),
        ("~no-such-user/shop", "there is no user whose home directory is meant by ~no-such-user/shop"),
    ],
)
def test_a_source_that_cannot_be_found_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        locate(name, "/play", directory=True)
    assert str(caught.value) == message.format(here=tmp_path)


def test_archive_revision_verifies_the_checksum(tmp_path: Path) -> None:
    (tmp_path / "shop.tar").write_bytes(b"shop")
    found = archive_revision(tmp_path / "shop.tar", None)
    assert found == hashlib.sha256(b"shop").hexdigest()
    assert archive_revision(tmp_path / "shop.tar", f"sha256:{found}") == found
    with pytest.raises(SourceError, match=rf"hashes to sha256:{found}; expected sha256:0+"):
        archive_revision(tmp_path / "shop.tar", f"sha256:{'0' * 64}")


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, "-C", str(directory), *arguments], check=True, capture_output=True)


def test_a_repository_of_another_user_is_rejected_with_the_message_of_git(app: Path) -> None:
    git(app, "init", "--quiet")
    (app / ".gitignore").write_text(".env\n")
    (app / ".env").write_text("PASSWORD=secret\n")
    for path in (app, *app.rglob("*")):
        os.chown(path, 1234, 1234)
    with pytest.raises(SourceError, match=r"git cannot list .*dubious ownership"):
        files(app)


def test_a_work_tree_without_git_is_rejected(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(app, "init", "--quiet")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SourceError, match=r"is in a git work tree, but git, which must list its files, cannot be started"):
        files(app / "shop")


def test_a_damaged_repository_is_rejected(app: Path) -> None:
    (app / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(SourceError, match="git cannot list"):
        files(app)


def test_a_directory_ignored_by_an_outer_repository_is_rejected(app: Path) -> None:
    git(app, "init", "--quiet")
    (app / ".gitignore").write_text("shop/\n")
    with pytest.raises(SourceError, match=r"git ignores .*/shop, so no files would be packed"):
        files(app / "shop")


def test_ignored_files_of_a_repository_below_the_source_are_not_packed(tmp_path: Path) -> None:
    repository = tmp_path / "apps/lib"
    repository.mkdir(parents=True)
    (repository / ".gitignore").write_text(".env\n")
    (repository / ".env").write_text("SECRET=1")
    (repository / "lib.py").touch()
    (tmp_path / "app.py").touch()
    (tmp_path / "link").symlink_to("apps/lib")
    git(repository, "init", "--quiet")
    assert files(tmp_path) == [Path("app.py"), Path("apps/lib/.gitignore"), Path("apps/lib/lib.py"), Path("link")]


def test_variables_of_a_git_hook_select_no_other_repository(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(app, "init", "--quiet")
    (app / ".gitignore").write_text("*.log\n")
    (app / "debug.log").touch()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert names(app) == [".gitignore", "run.sh", "shop/web.py"]


def test_a_committed_repository_runs_no_program_on_the_controller(app: Path) -> None:
    """Tracked files that look like a bare repository are one for git, which runs the program of its configuration."""
    subprocess.run(["git", "init", "--quiet", str(app)], check=True)
    evil = app / "shop"
    subprocess.run(["git", "init", "--quiet", "--bare", str(evil)], check=True)
    config = f'[core]\nrepositoryformatversion = 0\nbare = false\nworktree = ..\nfsmonitor = "touch {app}/ran #"\n'
    (evil / "config").write_text(config)
    (evil / "refs/kept").touch()
    (evil / "objects/kept").touch()
    git(app, "add", ".")
    assert "shop/config" in subprocess.run(["git", "-C", str(app), "ls-files"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["git", "-c", "safe.bareRepository=all", "-C", str(evil), "status"], capture_output=True, check=False)
    assert (app / "ran").exists(), "git itself runs it"
    (app / "ran").unlink()
    with pytest.raises(SourceError, match=r"git cannot list .*shop: .*safe\.bareRepository"):
        names(evil)
    assert not (app / "ran").exists()
    assert "run.sh" in names(app), "the repository of the app is another one"
    assert not (app / "ran").exists()


def test_files_of_a_submodule_are_packed(app: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    library = tmp_path_factory.mktemp("library")
    git(library, "init", "--quiet")
    (library / "lib.py").touch()
    (library / ".gitignore").write_text("*.log\n")
    git(library, "add", ".")
    git(library, "commit", "--quiet", "--message", "Begin")
    git(app, "init", "--quiet")
    git(app, "submodule", "--quiet", "add", str(library), "library")
    (app / "library/debug.log").touch()
    assert names(app) == [".gitmodules", "library/.gitignore", "library/lib.py", "run.sh", "shop/web.py"]
    git(app, "commit", "--quiet", "--message", "Add the library")
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "--quiet", str(app), ".")
    with pytest.raises(SourceError, match=r"submodule .*/library is not checked out; run `git submodule update"):
        files(clone)


def test_a_directory_in_place_of_a_tracked_file_is_packed(app: Path) -> None:
    git(app, "init", "--quiet")
    git(app, "add", ".")
    (app / "run.sh").unlink()
    (app / "run.sh").mkdir()
    (app / "run.sh/main").touch()
    assert names(app) == ["run.sh/main", "shop/web.py"]


@pytest.mark.parametrize("kind", ["worktree", "shallow clone"])
def test_a_worktree_and_a_shallow_clone_are_packed_like_the_repository(
    app: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    git(app, "init", "--quiet")
    (app / ".gitignore").write_text("*.log\n")
    for message in ("Begin", "Continue"):
        git(app, "add", ".")
        git(app, "commit", "--quiet", "--allow-empty", "--message", message)
    other = tmp_path_factory.mktemp("other") / "shop"
    if kind == "worktree":
        git(app, "worktree", "add", "--quiet", str(other))
    else:
        git(app, "clone", "--quiet", "--depth", "1", f"file://{app}", str(other))
    (other / "debug.log").touch()
    assert names(other) == names(app) == [".gitignore", "run.sh", "shop/web.py"]
    assert revision(other) == revision(app)
    (other / "new.py").touch()
    assert names(other / "shop") == ["web.py"]
    assert "new.py" in names(other), "which is not tracked yet"


@pytest.mark.parametrize("place", ["directory", "work tree"])
def test_a_git_lfs_pointer_is_rejected(app: Path, place: str) -> None:
    if place == "work tree":
        git(app, "init", "--quiet")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    (app / "logo.png").write_text(pointer)
    with pytest.raises(SourceError, match=r"logo\.png is a Git LFS pointer"):
        revision(app)


def make_special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))  # as /dev/null
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_special_files_are_rejected(app: Path, kind: str) -> None:
    make_special(app / "odd", kind)
    with pytest.raises(SourceError, match="odd is neither a file, a directory nor a link"):
        revision(app)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_special_files_in_a_work_tree_are_not_packed_as_git_does_not_list_them(app: Path, kind: str) -> None:
    git(app, "init", "--quiet")
    make_special(app / "odd", kind)
    assert names(app) == ["run.sh", "shop/web.py"]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_tracked_file_that_a_special_file_has_replaced_is_rejected(app: Path, kind: str) -> None:
    git(app, "init", "--quiet")
    git(app, "add", ".")
    (app / "run.sh").unlink()
    make_special(app / "run.sh", kind)
    with pytest.raises(SourceError, match=r"run\.sh is neither a file, a directory nor a link"):
        packed(app)


@pytest.mark.parametrize("place", ["directory", "work tree"])
def test_names_of_any_bytes_are_packed_unchanged(app: Path, place: str) -> None:
    odd = [b"stra\xdfe.txt", b"line\nbreak", "grüße.txt".encode(), b"x" * 200]
    for name in odd:
        Path(os.fsdecode(os.fsencode(app) + b"/" + name)).write_bytes(name)
    if place == "work tree":
        git(app, "init", "--quiet")
    assert len(revision(app)) == 64
    contents = subprocess.run(["tar", "-xzO"], input=packed(app), capture_output=True, check=True).stdout
    for name in odd:
        assert name in contents
    (app / "target").mkdir()
    subprocess.run(["tar", "-xz", "-C", str(app / "target")], input=packed(app), check=True)
    assert {os.fsencode(path.name) for path in (app / "target").iterdir()} >= set(odd)


def test_a_link_with_control_characters_is_rejected_with_a_printable_message(app: Path) -> None:
    Path(os.fsdecode(os.fsencode(app) + b"/\xdf\x1b[2J")).symlink_to("/etc/passwd")
    with pytest.raises(SourceError) as refused:
        revision(app)
    assert r"\xdf\x1b[2J is a link to /etc/passwd" in str(refused.value)


def test_a_loop_of_links_is_rejected(app: Path) -> None:
    (app / "one").symlink_to("two")
    (app / "two").symlink_to("one")
    with pytest.raises(SourceError, match="link"):
        packed(app)


def test_files_that_change_during_the_run_are_not_packed(app: Path, tmp_path: Path) -> None:
    before = revision(app)
    (app / "shop/web.py").write_text("print('changed')\n")
    with pytest.raises(SourceError, match=r"have changed during the run; run the same command again"):
        pack(app, tmp_path / "source", before)


@pytest.fixture
def large(app: Path) -> Path:
    for number in range(20):
        (app / f"image{number}.bin").write_bytes(os.urandom(10 * MIN_SIZE))
    (app / "image0.bin").chmod(0o755)
    (app / "link").symlink_to("image1.bin")
    (app / "copy.bin").hardlink_to(app / "image2.bin")
    return app


def test_files_that_the_host_holds_are_not_packed_and_the_host_completes_the_archive(large: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        live, incomplete, whole = (Path(temporary, name) for name in ("live", "incomplete", "whole"))
        live.mkdir()
        subprocess.run(["tar", "-xz", "-C", str(live)], input=packed(large), check=True)
        (large / "image3.bin").write_bytes(changed := os.urandom(10 * MIN_SIZE))
        incomplete.write_bytes(packed(large, *held_files(live)))
        assert incomplete.stat().st_size < 12 * MIN_SIZE
        complete_archive(incomplete, live, whole)
        found = members(whole.read_bytes())
        assert found == members(packed(large))
        assert found["image3.bin"][-1] == changed

        with pytest.raises(KeptFileError, match="exists"):  # like any other failure to write it
            complete_archive(incomplete, live, whole)
        (live / "image5.bin").unlink()
        with pytest.raises(KeptFileError, match=r"image5\.bin"):
            complete_archive(incomplete, live, whole)


def test_a_host_offers_neither_small_files_nor_links_nor_an_in_place_source(large: Path, tmp_path: Path) -> None:
    assert {path.name for path in held_files(large).values()} <= {"copy.bin", *(f"image{number}.bin" for number in range(20))}
    (large / "outside").symlink_to("/usr")
    assert len(held_files(large)) == 20
    (tmp_path / "src").symlink_to(large)
    assert held_files(tmp_path / "src") == {}


def test_the_digests_of_a_source_are_those_that_a_host_offers(large: Path) -> None:
    assert set(digests(large)) == set(held_files(large))


def test_an_archive_that_changes_during_the_run_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "shop.tar").write_bytes(b"first")
    expected = archive_revision(tmp_path / "shop.tar", None)
    copy_archive(tmp_path / "shop.tar", tmp_path / "copy", expected)
    assert (tmp_path / "copy").read_bytes() == b"first"
    (tmp_path / "shop.tar").write_bytes(b"second")
    with pytest.raises(SourceError, match=r"shop\.tar has changed during the run; run the same command again"):
        copy_archive(tmp_path / "shop.tar", tmp_path / "other", expected)
