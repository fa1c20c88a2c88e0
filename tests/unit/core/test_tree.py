"""Safe access to files that another user can write: no link is followed, and limits are enforced."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import Limits, TreeError

ME = os.getuid()
DEEP = 3_000


def copy(source: Path, target: Path, limits: Limits | None = None, allow: Callable[[Path], bool] = lambda _path: False) -> None:
    tree.copy(source, target, owner=ME, uid=ME, gid=os.getgid(), limits=limits, allow=allow)


def nest(top: Path, depth: int) -> None:
    """Create nested directories whose path exceeds PATH_MAX."""
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _level in range(depth):
        os.mkdir("deeper", dir_fd=descriptor)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


# Reading


def test_read_returns_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").write_bytes(b"text")
    assert tree.read(tmp_path / "own/file", 4, trusted=tmp_path) == b"text"


def test_read_refuses_more_than_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(TreeError, match="file has more than 4 bytes"):
        tree.read(tmp_path / "file", 4, trusted=tmp_path)


@pytest.mark.parametrize("place", ["link", "directory/file", "pipe", "socket", "plain/file"])
def test_read_refuses_links_and_special_files(tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to(secret / "file")
    (tmp_path / "directory").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    with listen(tmp_path / "socket"), pytest.raises(TreeError, match=str(tmp_path)):
        tree.read(tmp_path / place, 100, trusted=tmp_path)


def test_read_refuses_a_device() -> None:
    with pytest.raises(TreeError):
        tree.read(Path("/dev/zero"), 100, trusted=Path("/dev"))


def test_read_refuses_parent_directories(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="is outside"):
        tree.read(tmp_path / "x/../../etc/passwd", 100, trusted=tmp_path)


def test_read_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tree.read(tmp_path / "file", 1, trusted=tmp_path)


def test_read_end_returns_the_last_bytes_after_the_start(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"0123456789")
    assert tree.read_end(file, 3, trusted=tmp_path) == b"789"
    assert tree.read_end(file, 30, trusted=tmp_path, start=8) == b"89"
    assert tree.read_end(file, 30, trusted=tmp_path, start=11) == b"0123456789"


def test_names_are_sorted_and_limited(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert tree.names(tmp_path, 2, trusted=tmp_path) == ["a", "b"]
    with pytest.raises(TreeError, match="more than 1 names"):
        tree.names(tmp_path, 1, trusted=tmp_path)


# Removing


def test_remove_supports_any_depth(tmp_path: Path) -> None:
    nest(tmp_path / "top", DEEP)
    tree.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_remove_does_not_remove_targets_of_links(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(tmp_path / "other")
    tree.remove(tmp_path / "top")
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "file"]


def test_remove_does_not_follow_a_link_in_the_path(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(TreeError, match="link is not a directory"):
        tree.remove(tmp_path / "link/file", trusted=tmp_path)
    tree.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "file"]


def test_remove_ignores_missing_files(tmp_path: Path) -> None:
    tree.remove(tmp_path / "missing")
    tree.remove(tmp_path / "missing/too")
    assert list(tmp_path.iterdir()) == []


def test_remove_completes_an_interrupted_removal(tmp_path: Path) -> None:
    nest(tmp_path / ".removing-top", 5)
    tree.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_remove_refuses_mounts_below_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(TreeError, match="a file system is mounted at /proc"):
        tree.remove(tmp_path / "link/proc")


def test_remove_refuses_mounts() -> None:
    with pytest.raises(TreeError, match="a file system is mounted at /proc"):
        tree.remove(Path("/proc"))


def test_remove_copes_with_concurrent_changes_by_the_owner(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    held = os.open(top, os.O_RDONLY)
    stopped = threading.Event()

    def disturb() -> None:
        for number in range(300):
            try:
                os.mkdir(str(number), dir_fd=held)
                os.symlink("/", f"{number}/link", dir_fd=held)
                os.rename(str(number), f"moved-{number}", src_dir_fd=held, dst_dir_fd=held)
            except OSError:
                pass
            if stopped.is_set():
                break

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        tree.remove(top)
    finally:
        stopped.set()
        thread.join()
        os.close(held)
    assert list(tmp_path.iterdir()) == []


# Copying


def test_copy_normalizes_modes_and_preserves_timestamps(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner/program").write_text("#!")
    (source / "inner/program").chmod(0o6711)
    (source / "text").write_text("text")
    (source / "text").chmod(0o666)
    (source / "link").symlink_to("inner/program")
    os.utime(source / "text", (1, 2))
    os.utime(source / "inner", (3, 4))
    copy(source, tmp_path / "target")
    target = tmp_path / "target"
    modes = {str(path.relative_to(target)): path.lstat().st_mode & 0o7777 for path in target.rglob("*") if not path.is_symlink()}
    assert modes == {"inner": 0o755, "inner/program": 0o755, "text": 0o644}
    assert target.stat().st_mode & 0o7777 == 0o755
    assert ((target / "text").stat().st_mtime, (target / "inner").stat().st_mtime) == (2, 4)
    assert (target / "link").readlink() == Path("inner/program")
    assert (target / "text").stat().st_ino != (source / "text").stat().st_ino


def test_copy_is_independent_of_open_descriptors_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source/code.py").open("w") as held:
        held.write("good")
        held.flush()
        copy(tmp_path / "source", tmp_path / "target")
        held.write("evil")
    assert (tmp_path / "target/code.py").read_text() == "good"


@pytest.mark.parametrize(
    "link", ["/etc/passwd", "../other", "inner/../../other", "loop/../../../other", "inner/up/other", "../source/inner"]
)
def test_copy_refuses_links_to_paths_outside_the_tree(tmp_path: Path, link: str) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner/up").symlink_to("../..")
    (source / "loop").symlink_to("inner")
    (source / "bad").symlink_to(link)
    if "up" not in link:
        (source / "inner/up").unlink()
    with pytest.raises(TreeError, match="is a link to a path outside"):
        copy(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_copy_preserves_links_inside_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner/self").symlink_to("../inner/missing")
    (source / "loop").symlink_to("loop")
    (source / "dot").symlink_to(".")
    copy(source, tmp_path / "target")
    assert (tmp_path / "target/loop").readlink() == Path("loop")


def test_copy_preserves_allowed_links_to_paths_outside(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/python").symlink_to("/usr/bin/python3")
    copy(tmp_path / "source", tmp_path / "target", allow=lambda path: path == Path("/usr/bin/python3"))
    assert (tmp_path / "target/python").readlink() == Path("/usr/bin/python3")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=2), "more than 2 files"),
        (Limits(size=1 << 20), "more than 1 MiB"),
        (Limits(depth=2), "nested more than 2 deep"),
        (Limits(seconds=-1), "cannot be copied within -1 s"),
        (Limits(free=1 << 60), "less than 1099511627776 MiB would remain"),
    ],
)
def test_copy_enforces_its_limits(tmp_path: Path, limits: Limits, message: str) -> None:
    source = tmp_path / "source"
    (source / "a/b/c").mkdir(parents=True)
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 40 if limits.size == 1 << 20 else 1)
    with pytest.raises(TreeError, match=message):
        copy(source, tmp_path / "target", limits)
    assert not (tmp_path / "target").exists()


def test_copy_checks_links_in_limited_time(tmp_path: Path) -> None:
    """Each link of a chain leads through the others by a long path."""
    (tmp_path / "source/d").mkdir(parents=True)
    for number in range(30):
        (tmp_path / f"source/{number}").symlink_to(f"{'d/../' * 800}{number + 1}")
    with pytest.raises(TreeError, match=r"the links in .*/source cannot be checked within 0\.2 s"):
        copy(tmp_path / "source", tmp_path / "target", Limits(seconds=0.2))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: listen(path).close()])
def test_copy_refuses_special_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "source").mkdir()
    make(tmp_path / "source/odd")
    with pytest.raises(TreeError, match="not a file, directory or link"):
        copy(tmp_path / "source", tmp_path / "target")


def test_copy_refuses_files_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(TreeError, match=f"is owned by user {ME}, not by {ME + 1}"):
        tree.copy(tmp_path / "source", tmp_path / "target", owner=ME + 1)


def test_copy_supports_any_file_name(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    names = [b"new\nline", b"latin-\xe9", b"x" * 255]
    for name in names:
        Path(os.fsdecode(bytes(tmp_path / "source") + b"/" + name)).write_text("text")
    copy(tmp_path / "source", tmp_path / "target")
    assert sorted(os.fsencode(path.name) for path in (tmp_path / "target").iterdir()) == sorted(names)


# State, moves, links, listing


def test_state_describes_a_link_itself_and_follows_none(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/link").symlink_to("/etc")
    state = tree.state(tmp_path / "own/link", trusted=tmp_path)
    assert state is not None
    assert stat.S_ISLNK(state.st_mode)
    assert tree.state(tmp_path / "own/missing", trusted=tmp_path) is None
    with pytest.raises(TreeError):
        tree.state(tmp_path / "own/link/passwd", trusted=tmp_path)


def test_move_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from/file").touch()
    tree.move(tmp_path / "from/file", tmp_path / "to/new", trusted=tmp_path)
    assert (tmp_path / "to/new").exists()
    (tmp_path / "link").symlink_to("to")
    with pytest.raises(TreeError):
        tree.move(tmp_path / "link/new", tmp_path / "stolen", trusted=tmp_path)


@pytest.mark.parametrize("there", ["nothing", "file", "link", "pipe", "directory"])
def test_replace_link_replaces_a_file_of_any_type(tmp_path: Path, there: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    if there == "file":
        (own / "0.sock").touch()
    elif there == "link":
        (own / "0.sock").symlink_to("/etc")
    elif there == "pipe":
        os.mkfifo(own / "0.sock")
    elif there == "directory":
        nest(own / "0.sock", 10)
    tree.replace_link(own / "0.sock", "1.sock", trusted=tmp_path)
    assert (own / "0.sock").readlink() == Path("1.sock")
    assert [path.name for path in own.iterdir()] == ["0.sock"]
