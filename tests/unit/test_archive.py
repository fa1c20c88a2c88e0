from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.archive import fetch, unpack
from ansible_collections.funnel.tornado.plugins.module_utils.home import BuildError

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
    """Write what Info-ZIP would: links are members whose mode says so."""
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


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_one_top_directory_is_dropped_and_programs_links_and_times_stay(tmp_path: Path, tree: Path, ending: str) -> None:
    file = tmp_path / f"shop.{ending}"
    unpack(zipped(file, tree) if ending == "zip" else tarred(file, tree), tmp_path / "src", KEY)
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["link", "run.sh", "shop"]
    run = tmp_path / "src/run.sh"
    assert (os.access(run, os.X_OK), run.stat().st_mtime) == (True, 1_000_000_000)
    assert not os.access(tmp_path / "src/shop/web.py", os.X_OK)
    assert (tmp_path / "src/link").readlink() == Path("run.sh")
    assert not (tmp_path / ".src").exists()


def test_without_a_single_top_directory_everything_stays_where_it_is(tmp_path: Path, tree: Path) -> None:
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        archive.write(tree / "run.sh", "run.sh")
        archive.write(tree / "shop/web.py", "shop/web.py")
    unpack(tmp_path / "shop.zip", tmp_path / "src", KEY)
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["run.sh", "shop"]


def test_a_tar_file_that_ends_with_a_zip_file_is_a_tar_file(tmp_path: Path, tree: Path) -> None:
    zipped(tree / "zz.zip", tree)
    unpack(tarred(tmp_path / "shop.tar", tree), tmp_path / "src", KEY)
    assert (tmp_path / "src/zz.zip").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_no_member_of_a_zip_file_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "evil")
    with pytest.raises(BuildError, match="outside of the source's directory"):
        unpack(tmp_path / "evil.zip", tmp_path / "src", KEY)
    assert not (tmp_path / "evil").exists()


def test_nothing_is_written_through_a_link_of_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = zipfile.ZipInfo("a/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "outside"))
        archive.writestr("a/link/evil", "evil")
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpack(tmp_path / "evil.zip", tmp_path / "src", KEY)
    assert list((tmp_path / "outside").iterdir()) == []


def test_no_member_of_a_tar_file_leaves_the_directory(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "evil").touch()
    command = ["tar", "-cPf", str(tmp_path / "evil.tar"), "--transform", "s,^,../,", "evil"]
    subprocess.run(command, check=True, cwd=tmp_path)
    (tmp_path / "evil").unlink()
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpack(tmp_path / "evil.tar", tree / "src", KEY)
    assert not (tree / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shop.tar.gz").write_bytes(content)
    with pytest.raises(BuildError, match=rf"{KEY}: cannot be unpacked"):
        unpack(tmp_path / "shop.tar.gz", tmp_path / "src", KEY)


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
        """Say nothing: what is too large is not read to its end."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_what_is_fetched_hashes_to_what_is_wanted(tmp_path: Path, server: str) -> None:
    right = hashlib.sha256(b"shop" * 1_000_000).hexdigest()
    fetch(f"{server}/shop.tar", tmp_path / "got", f"sha256:{right}", KEY)
    assert (tmp_path / "got").read_bytes() == b"shop" * 1_000_000
    with pytest.raises(BuildError) as caught:
        fetch(f"{server}/shop.tar", tmp_path / "got", f"sha256:{'0' * 64}", KEY)
    assert f"{KEY}.checksum: http://***@127.0.0.1" in str(caught.value)
    assert f"hashes to sha256:{right}; sha256:{'0' * 64} is wanted" in str(caught.value)


def test_what_cannot_be_fetched_is_named_without_its_password(tmp_path: Path, server: str) -> None:
    with pytest.raises(BuildError) as caught:
        fetch(f"{server}/missing.tar", tmp_path / "got", f"sha256:{'0' * 64}", KEY)
    assert "/missing.tar cannot be fetched from this host: HTTP Error 404" in str(caught.value)
    assert "hunter2" not in str(caught.value)
