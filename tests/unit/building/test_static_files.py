from __future__ import annotations

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
    return {str(path.relative_to(public)): path.read_text() for path in public.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc"])
def test_links_out_of_the_source_are_rejected_by_name(tmp_path: Path, static: Path, target: str) -> None:
    (static / "css/out").symlink_to(target)
    with pytest.raises(BuildError, match=rf"tornado_apps\.shop\.static\.path: out in css is a link to {target}, outside"):
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
