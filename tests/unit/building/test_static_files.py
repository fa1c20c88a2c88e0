from __future__ import annotations

import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tornado.web import StaticFileHandler

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building import static_files
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import Environment
from ansible_collections.funnel.tornado.plugins.module_utils.building.static_files import publish_static
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError


def app(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, **keys}})["shop"]


def publish(work: Path, **keys: Any) -> dict[str, str]:
    """Publish the directory `static` of the source in `work`; return the content of the files by path."""
    publish_static(app(static={}, **keys), work, Environment(work / "venv", built=False))
    public = work / "public/static"
    return {str(path.relative_to(public)): path.read_text(errors="replace") for path in public.rglob("*") if path.is_file()}


def test_static_files_are_published_by_url_and_by_tornado_version(tmp_path: Path) -> None:
    work = tmp_path / "release"
    static = work / "src/www"
    (static / "css").mkdir(parents=True)
    (static / "css/a.min.css").write_text("a")
    (static / "css/a.min.css.gz").write_text("packed")
    (static / "same.css").write_text("a")
    (static / "LICENSE").write_text("b")
    (work / "src/secret.py").write_text("c")
    publish_static(app(static={"url": "/x/y/", "path": "www"}), work, Environment(tmp_path / "venv", built=False))
    published = {str(path.relative_to(work / "public")) for path in (work / "public").rglob("*") if path.is_file()}
    assert published == {"x/y/css/a.min.css", "x/y/css/a.min.css.gz", "x/y/same.css", "x/y/LICENSE"}
    version = StaticFileHandler.get_content_version(str(static / "same.css"))
    names = {path.name: path.read_text() for path in (work / "versions").iterdir()}
    assert (names[f"{version}.css"], names[f"{version}.css.gz"]) == ("a", "packed")
    assert names[StaticFileHandler.get_content_version(str(static / "LICENSE"))] == "b"
    assert (work / "public/x/y/LICENSE").stat().st_nlink == 3, "a hard link"


def test_text_is_published_with_a_compressed_variant_of_the_same_age(tmp_path: Path, static: Path) -> None:
    text = b"body { margin: 0 }\n" * 100
    for name in ("style.css", "same.css", "packed.css", "picture.png", "noise.js"):
        (static / name).write_bytes(text)
        os.utime(static / name, (1_700_000_000, 1_700_000_000))
    (static / "noise.js").write_bytes(noise := os.urandom(1000))
    (static / "packed.css").write_bytes(text + b"/* */")
    (static / "packed.css.gz").write_bytes(b"from the source")
    publish_static(app(static={}), tmp_path, Environment(tmp_path / "venv", built=False))
    public, versions = tmp_path / "public/static", tmp_path / "versions"
    found = {path.name: path for path in public.glob("*.gz")}
    assert found.keys() == {"style.css.gz", "same.css.gz", "packed.css.gz"}
    assert found["packed.css.gz"].read_bytes() == b"from the source"
    version = StaticFileHandler.get_content_version(str(static / "style.css"))
    for path in (found["style.css.gz"], found["same.css.gz"], versions / f"{version}.css.gz"):
        assert gzip.decompress(path.read_bytes()) == text
        assert (path.stat().st_mtime, path.stat().st_mode & 0o777) == (1_700_000_000, 0o644)
    assert (public / "noise.js").read_bytes() == noise


def test_files_beyond_the_limit_of_compression_are_published_without_a_variant(
    tmp_path: Path, static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_files, "MAX_COMPRESSED_BYTES", 2500)
    for number in range(4):
        (static / f"{number}.txt").write_text(f"{number}" * 1000)
    assert {name for name in publish(tmp_path) if name.endswith(".gz")} == {"0.txt.gz", "1.txt.gz"}


def test_static_directories_outside_the_source_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/static").symlink_to("/etc")
    with pytest.raises(BuildError, match=r"tornado_apps.shop.static.path: static points outside the source, to /etc"):
        publish_static(app(static={}), tmp_path, Environment(tmp_path / "venv", built=False))


@pytest.fixture
def static(tmp_path: Path) -> Path:
    directory = tmp_path / "src/static"
    (directory / "css").mkdir(parents=True)
    (directory / "css/a.css").write_text("a")
    return directory


def test_links_to_static_files_are_published(tmp_path: Path, static: Path) -> None:
    (static / "b.css").symlink_to("css/a.css")
    (static / "chain.css").symlink_to("b.css")
    (static / "styles").symlink_to("css")
    (static / "bundle").symlink_to("css/a.css")
    assert publish(tmp_path) == {
        "css/a.css": "a",
        "b.css": "a",
        "chain.css": "a",
        "styles/a.css": "a",
        "bundle": "a",
    }
    version = StaticFileHandler.get_content_version(str(static / "bundle"))
    assert {path.name for path in (tmp_path / "versions").iterdir()} >= {f"{version}.css", version}


def test_links_to_code_of_the_source_are_skipped(tmp_path: Path, static: Path) -> None:
    (tmp_path / "src/web.py").write_text("code")
    (static / "web.py").symlink_to("../web.py")
    (static / "above").symlink_to("..")
    assert publish(tmp_path) == {"css/a.css": "a"}


def test_links_that_lead_nowhere_or_to_a_directory_around_them_are_skipped(tmp_path: Path, static: Path) -> None:
    (static / "dangling").symlink_to("missing")
    (static / "loop").symlink_to("loop")
    (static / "css/up").symlink_to("..")
    (static / "self").symlink_to(".")
    assert publish(tmp_path) == {"css/a.css": "a"}


def test_links_between_directories_are_followed_once(tmp_path: Path, static: Path) -> None:
    """As npm workspaces link to each other; here also from a link into the middle of a directory."""
    for name in ("a", "c", "e/deep"):
        (static / name).mkdir(parents=True)
        (static / name / "x.txt").write_text(name)
    (static / "a/b").symlink_to("../c")
    (static / "c/d").symlink_to("../a")
    (static / "before").symlink_to("e/deep")
    (static / "e/deep/again").symlink_to("../../f")
    (static / "f").mkdir()
    (static / "f/back").symlink_to("../e")
    found = publish(tmp_path)
    assert found.keys() >= {"a/x.txt", "a/b/x.txt", "c/x.txt", "c/d/x.txt", "e/deep/x.txt", "before/x.txt", "f/back/deep/x.txt"}
    assert not [name for name in found if len(name.split("/")) > 4]


def test_directories_that_are_nested_too_deeply_are_rejected(tmp_path: Path, static: Path) -> None:
    for number in range(600):
        (static / f"{number}").mkdir()
        (static / f"{number}/next").symlink_to(f"../{number + 1}")
    with pytest.raises(BuildError, match="more than 100 directories are nested, including those that links lead to"):
        publish(tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc"])
def test_links_out_of_the_source_are_rejected_by_name(tmp_path: Path, static: Path, target: str) -> None:
    (static / "css/out").symlink_to(target)
    with pytest.raises(BuildError, match=rf"tornado_apps\.shop\.static\.path: out in css is a link to {target}, outside"):
        publish(tmp_path)


def test_link_that_the_app_changes_during_the_walk_is_not_followed(tmp_path: Path) -> None:
    """The app exchanges a link in its shared data while root reads the static files, here a pipe."""
    files, shared = tmp_path / "src/files", tmp_path / "shared"
    (shared / "other").mkdir(parents=True)
    files.mkdir(parents=True)
    (tmp_path / "src/static").symlink_to("../shared/link")
    (tmp_path / "secret").write_text("of another app\n" * 100)
    os.mkfifo(files / "a.bin")
    (files / "b.txt").symlink_to("../../shared/b.txt")
    (shared / "b.txt").symlink_to("../secret")
    (shared / "other/b.txt").write_text("a regular file")
    (shared / "link").symlink_to("../src/files")

    def exchange() -> None:
        with (files / "a.bin").open("wb"):  # which root has opened, and reads until it is closed
            (shared / "link").unlink()
            (shared / "link").symlink_to("other")

    with ThreadPoolExecutor() as threads:
        exchanged = threads.submit(exchange)
        with pytest.raises(BuildError, match=r"static\.path: b\.txt in files is a link to .*/secret, outside the source"):
            publish_static(app(static={}), tmp_path, Environment(tmp_path / "venv", built=False))
        exchanged.result(10)
    assert (shared / "link").readlink() == Path("other")


def test_static_files_are_published_in_limited_time(tmp_path: Path, static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to directories multiply files, which are hashed each time."""
    (static / "styles").symlink_to("css")
    monkeypatch.setattr(static_files, "MAX_SECONDS", 0)
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.static\.path: the files cannot be published within 0 s"):
        publish(tmp_path)


def test_shared_paths_below_static_are_not_published(tmp_path: Path, static: Path) -> None:
    (static / "uploads").symlink_to("/srv/shop/shared/static/uploads")
    assert publish(tmp_path, shared={"static/uploads": {"url": "/static/uploads/"}}) == {"css/a.css": "a"}


def test_links_cannot_multiply_files_without_limit(tmp_path: Path, static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_files, "MAX_FILES", 1000)
    for level in range(20):
        (static / f"{level}").mkdir()
        for name in ("x", "y"):
            (static / f"{level}/{name}").symlink_to(f"../{level + 1}")
    with pytest.raises(BuildError, match="there are more than 1000 files"):
        publish(tmp_path)
