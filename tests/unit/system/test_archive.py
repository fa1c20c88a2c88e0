from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system import unpacking
from ansible_collections.funnel.tornado.plugins.module_utils.system.archive import fetch, keep_subdirectory, unpack
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import Builder, BuildError

KEY = "tornado_apps.shop.source"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "shop-1.0"
    (top / "shop").mkdir(parents=True)
    (top / "shop/web.py").write_text("print('shop')\n")
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "link").symlink_to("run.sh")
    os.utime(top / "run.sh", (1_000_000_000, 1_000_000_000))
    return top


def zipped(file: Path, tree: Path) -> Path:
    """Create a zip file like Info-ZIP, with links marked by their mode."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(path for path in tree.rglob("*") if path.is_symlink() or path.is_file()):
            state = path.lstat()
            member = zipfile.ZipInfo(str(path.relative_to(tree.parent)), time.gmtime(state.st_mtime)[:6])
            member.external_attr = state.st_mode << 16
            archive.writestr(member, os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes())
    return file


def tarred(file: Path, tree: Path) -> Path:
    command = ["tar", "--create", "--auto-compress", "--file", str(file), "--directory", str(tree.parent), tree.name]
    subprocess.run(command, check=True)
    return file


class LocalBuilder(Builder):
    """Runs programs as the current user."""

    def run(self, command: Sequence[str], failure: str, *, stdin: int | None = None, **_bounds: Any) -> str:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{failure}: {done.stderr}")
        return done.stdout


def unpacked(file: Path, directory: Path, *, subdirectory: str = ".", flatten: bool = True) -> Path:
    directory.mkdir(exist_ok=True)
    with file.open("rb") as opened:
        unpack(LocalBuilder(Layout("shop")), opened.fileno(), directory, KEY, subdirectory=subdirectory, flatten=flatten)
    return directory


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip"])
def test_a_single_top_directory_is_stripped_and_metadata_is_preserved(tmp_path: Path, tree: Path, ending: str) -> None:
    file = tmp_path / f"shop.{ending}"
    unpacked(zipped(file, tree) if ending == "zip" else tarred(file, tree), tmp_path / "src")
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["link", "run.sh", "shop"]
    run = tmp_path / "src/run.sh"
    assert (os.access(run, os.X_OK), run.stat().st_mtime) == (True, 1_000_000_000)
    assert not os.access(tmp_path / "src/shop/web.py", os.X_OK)
    assert (tmp_path / "src/link").readlink() == Path("run.sh")


def test_several_top_directories_are_kept(tmp_path: Path, tree: Path) -> None:
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        archive.write(tree / "run.sh", "run.sh")
        archive.write(tree / "shop/web.py", "shop/web.py")
    unpacked(tmp_path / "shop.zip", tmp_path / "src")
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["run.sh", "shop"]


def test_a_tar_file_that_ends_with_a_zip_file_is_a_tar_file(tmp_path: Path, tree: Path) -> None:
    zipped(tree / "zz.zip", tree)
    unpacked(tarred(tmp_path / "shop.tar", tree), tmp_path / "src")
    assert (tmp_path / "src/zz.zip").exists()


def test_tar_files_are_read_from_pipes_and_unpacked_into_subdirectories(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "src").mkdir()
    with subprocess.Popen(["tar", "-c", tree.name], cwd=tree.parent, stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        unpack(LocalBuilder(Layout("shop")), tar.stdout.fileno(), tmp_path / "src", KEY, subdirectory="vendor/lib")
    assert tar.returncode == 0
    assert (tmp_path / "src/vendor/lib/shop-1.0/run.sh").exists()


def test_a_subdirectory_takes_the_place_of_the_source(tmp_path: Path, tree: Path) -> None:
    source = unpacked(tarred(tmp_path / "shop.tar", tree), tmp_path / "src")
    (source / "packages/web/web").mkdir(parents=True)
    (source / "packages/web/web/main.py").touch()
    keep_subdirectory(LocalBuilder(Layout("shop")), source, "packages/web", KEY)
    assert [str(path.relative_to(source)) for path in sorted(source.rglob("*"))] == ["web", "web/main.py"]


@pytest.mark.parametrize("subdirectory", ["web", "run.sh", "link", "shop/../shop"])
def test_a_subdirectory_that_the_source_lacks_is_refused(tmp_path: Path, tree: Path, subdirectory: str) -> None:
    source = unpacked(tarred(tmp_path / "shop.tar", tree), tmp_path / "src")
    with pytest.raises(BuildError, match=f"^{KEY}: \\S+ is not a directory of the source"):
        keep_subdirectory(LocalBuilder(Layout("shop")), source, subdirectory, KEY)
    assert (source / "run.sh").exists()


def test_an_absolute_subdirectory_is_refused(tmp_path: Path) -> None:
    for name in ("other", "src"):
        (tmp_path / name).mkdir()
    with pytest.raises(BuildError, match=f"{tmp_path}/other is not a directory of the source"):
        keep_subdirectory(LocalBuilder(Layout("shop")), tmp_path / "src", str(tmp_path / "other"), KEY)
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize("subdirectory", ["link/inner", "../inner", "file/inner"])
def test_a_subdirectory_behind_a_link_is_refused(tmp_path: Path, tree: Path, subdirectory: str) -> None:
    for name in ("outside", "src"):
        (tmp_path / name).mkdir()
    (tmp_path / "src/link").symlink_to(tmp_path / "outside")
    (tmp_path / "src/file").touch()
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpacked(tarred(tmp_path / "shop.tar", tree), tmp_path / "src", subdirectory=subdirectory)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_zip_members_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "evil")
    with pytest.raises(BuildError, match="outside of the source's directory"):
        unpacked(tmp_path / "evil.zip", tmp_path / "src")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_pointers_of_git_lfs_are_refused_by_name(tmp_path: Path, tree: Path, ending: str) -> None:
    (tree / "logo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    file = tmp_path / f"shop.{ending}"
    packed = zipped(file, tree) if ending == "zip" else tarred(file, tree)
    with pytest.raises(BuildError, match=r"logo\.png is a Git LFS pointer instead of the file; .* `git lfs pull`"):
        unpacked(packed, tmp_path / "src")


def test_pointers_of_git_lfs_in_a_submodule_are_refused_with_its_path(tmp_path: Path, tree: Path) -> None:
    (tree / "logo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    (tmp_path / "src").mkdir()
    with pytest.raises(BuildError, match=r"vendor/lib: \S*logo\.png is a Git LFS pointer"):
        unpacked(tarred(tmp_path / "shop.tar", tree), tmp_path / "src", subdirectory="./vendor/lib")


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_nothing_is_written_through_a_link(tmp_path: Path, ending: str) -> None:
    (tmp_path / "outside").mkdir()
    file = tmp_path / f"evil.{ending}"
    if ending == "zip":
        link = zipfile.ZipInfo("a/link")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(link, str(tmp_path / "outside"))
            archive.writestr("a/link/evil", "evil")
    else:
        with tarfile.open(file, "w") as packed:
            packed.addfile(tar_member("a/link", tarfile.SYMTYPE, str(tmp_path / "outside")))
            packed.addfile(tar_member("a/link/evil"))
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpacked(file, tmp_path / "src")
    assert list((tmp_path / "outside").iterdir()) == []


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tar_member("../evil"),
        tar_member("/evil"),
        tar_member("pipe", tarfile.FIFOTYPE),
        tar_member("device", tarfile.CHRTYPE),
        tar_member("passwd", tarfile.LNKTYPE, "/etc/passwd"),
        tar_member("passwd", tarfile.LNKTYPE, "../../etc/passwd"),
    ],
)
def test_tar_members_outside_the_directory_and_special_files_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(tar_member("good"))
        archive.addfile(member)
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpacked(tmp_path / "evil.tar", tmp_path / "src")
    assert not (tmp_path / "evil").exists()
    assert [path.name for path in (tmp_path / "src").iterdir()] == ["good"]


@pytest.mark.parametrize(("bound", "message"), [("max_files", "more than 3 members"), ("max_bytes", "more than 0 MiB")])
def test_number_and_unpacked_size_of_members_are_limited(tmp_path: Path, tree: Path, bound: str, message: str) -> None:
    limit: dict[str, Any] = {bound: 3}
    for ending in ("tar.gz", "zip"):
        file = tmp_path / f"shop.{ending}"
        (tree / "more").write_text("text")
        (tmp_path / "src").mkdir(exist_ok=True)
        packed = zipped(file, tree) if ending == "zip" else tarred(file, tree)
        with packed.open("rb") as opened, pytest.raises(unpacking.UnpackError, match=message):
            unpacking.Unpacking(tmp_path / "src", **limit).unpack(opened)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_other_files_than_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shop.tar.gz").write_bytes(content)
    with pytest.raises(BuildError, match=rf"{KEY}: cannot be unpacked"):
        unpacked(tmp_path / "shop.tar.gz", tmp_path / "src")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/shop.tar").write_bytes(b"shop" * 1_000_000)
    with Server(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=[0.01])
        thread.start()
        yield f"http://user:hunter2@127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore errors: clients do not read files that are too large to the end."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Discard log messages."""


def test_the_checksum_of_a_download_is_verified(tmp_path: Path, server: str) -> None:
    right = hashlib.sha256(b"shop" * 1_000_000).hexdigest()
    fetch(f"{server}/shop.tar", tmp_path / "got", f"sha256:{right}", KEY)
    assert (tmp_path / "got").read_bytes() == b"shop" * 1_000_000
    with pytest.raises(BuildError) as caught:
        fetch(f"{server}/shop.tar", tmp_path / "got", f"sha256:{'0' * 64}", KEY)
    assert f"{KEY}.checksum: http://***@127.0.0.1" in str(caught.value)
    assert f"hashes to sha256:{right}; expected sha256:{'0' * 64}" in str(caught.value)


def test_failed_downloads_are_reported_without_passwords(tmp_path: Path, server: str) -> None:
    with pytest.raises(BuildError) as caught:
        fetch(f"{server}/missing.tar", tmp_path / "got", f"sha256:{'0' * 64}", KEY)
    assert "/missing.tar cannot be fetched from this host: HTTP Error 404" in str(caught.value)
    assert "hunter2" not in str(caught.value)
