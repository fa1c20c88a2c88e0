from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.shared import SharedPath, is_directory
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import HostFacts, host_problems, load
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError


def entry(**keys: Any) -> dict[str, Any]:
    return {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, **keys}


def problems(**keys: Any) -> list[str]:
    try:
        load({"shop": entry(**keys)})
    except InvalidDataError as error:
        return error.problems
    return []


def test_a_list_and_a_dict_of_shared_paths_are_equivalent() -> None:
    shapes: list[Any] = [["instance", "media/"], {"instance": {}, "media/": {}}]
    for shared in shapes:
        app = load({"shop": entry(shared=shared)})["shop"]
        assert app.shared_paths == {"instance": SharedPath(), "media": SharedPath()}


@pytest.mark.parametrize(
    ("path", "directory"),
    [("instance", True), ("conf.d/", True), ("data/uploads", True), (".cache", True), ("db.sqlite3", False), ("a/b.json", False)],
)
def test_missing_paths_with_an_extension_are_files(path: str, *, directory: bool) -> None:
    assert is_directory(path) is directory


@pytest.mark.parametrize("path", ["/srv/data", "../data", "a/../../b", ".", "./a", "a//b", "a b", "a;b", "", "/"])
def test_paths_outside_the_source_or_with_special_characters_are_rejected(path: str) -> None:
    assert problems(shared=["media", path]) == [
        "tornado_apps.shop.shared[1]: must be a path inside the source, relative to it, of letters, digits and . _ -, such as "
        f"instance or data/db.sqlite3; found {path!r}"
    ]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"shared": ["media", "media/"]}, "shared[1]: media is listed twice"),
        (
            {"shared": ["data", "data/db.sqlite3"]},
            "shared[1]: data/db.sqlite3 lies in data, which is shared as well",
        ),
        ({"shared": ["a/b", "a"]}, "shared[1]: a/b lies in a, which is shared as well; keep a"),
        ({"shared": [".funnel-restore"]}, "shared[0]: the name .funnel-restore is reserved"),
        ({"static": {}, "shared": ["static"]}, "shared[0]: contains static, the static.path, which each release has"),
        ({"static": {"path": "www/static"}, "shared": ["www"]}, "shared[0]: contains www/static, the static.path"),
        ({"static": {}, "shared": ["static/uploads"]}, "shared[0]: lies in static, the static.path; set its url"),
        ({"shared": {"../x": {}}}, "shared.../x: must be a path inside the source"),
        ({"shared": {"db.sqlite3": {"url": "/db/"}}}, "shared.db.sqlite3.url: requires a directory"),
        ({"shared": {"media": {"url": "/media"}}}, "shared.media.url: must be a path between slashes"),
        ({"shared": {"media": {"urls": "/media/"}}}, "shared.media.urls: unknown key; did you mean url?"),
        ({"shared": "media"}, "shared: must be list of str or dict; found 'media'"),
        ({"static": {}, "shared": {"a": {"url": "/static/"}}}, "shared.a.url: /static/ is already in use or reserved"),
        ({"shared": {"a": {"url": "/m/"}, "b": {"url": "/m/"}}}, "shared.b.url: /m/ is already in use or reserved"),
        ({"shared": {"a": {"url": "/.funnel/"}}}, "shared.a.url: /.funnel/ is already in use or reserved"),
        (
            {"shared": ["a"], "source": {"directory": "/home/ann/shop"}, "debug": True},
            "shared: requires releases; source.directory, which runs in place, keeps its own files",
        ),
        ({"packages": ["ffmpeg-"]}, 'packages[0]: must be the name of a Debian package, such as "ffmpeg"'),
        ({"packages": ["--reinstall"]}, "packages[0]: must be the name of a Debian package"),
        ({"packages": ["./local.deb"]}, "packages[0]: must be the name of a Debian package"),
        ({"packages": ["ffmpeg=7:5.1", "x/sid", "g:i386"]}, "packages[0]: must be the name of a Debian package"),
        ({"packages": "ffmpeg"}, "packages: must be list of str; found 'ffmpeg'"),
        ({"source": {"path": ".", "requirements": ["a==1"]}}, "source.requirements: requires source.package"),
        (
            {"source": {"package": "a", "version": "1", "requirements": ["gunicorn"]}},
            "source.requirements[0]: must be a package and",
        ),
        ({"source": {"package": "a", "version": "1", "requirements": ["-r x"]}}, "source.requirements[0]: must be a package and"),
        (
            {"source": {"package": "a", "version": "1", "requirements": ["b @ git+https://git.test/b.git@main"]}},
            "source.requirements[0]: must be a package and",
        ),
        (
            {"source": {"package": "a", "version": "1", "requirements": ["b @ https://ann:secret@a.test/b.whl"]}},
            "source.requirements[0]: must be a package and",
        ),
        ({"source": {"package": "a", "version": "1", "requirements": ["a>=1"]}}, "source.requirements[0]: must be a package and"),
    ],
)
def test_mistakes_are_reported_with_path_and_remedy(keys: dict[str, Any], problem: str) -> None:
    assert any(found.startswith(f"tornado_apps.shop.{problem}") for found in problems(**keys)), problems(**keys)


def test_shared_paths_below_static_and_of_a_mounted_app_may_have_urls_of_their_own() -> None:
    assert problems(static={}, shared={"static/uploads": {"url": "/static/uploads/"}, "media": {"url": "/media/"}}) == []
    inside = {"shop": entry(), "api": entry(prefix="/api/", shared={"media": {"url": "/media/"}})}
    with pytest.raises(InvalidDataError, match=r"tornado_apps.api.shared.media.url: must begin with /api/"):
        load(inside)


def test_further_requirements_have_a_version_or_a_url() -> None:
    lines = ["gunicorn==23.0.0", "psycopg[binary, pool]==3.2.9", 'uvloop==0.21.0; python_version < "3.14"']
    lines += [
        "lib @ git+https://git.example.com/lib.git@4123067c0b1f7ff0b2c9e2a1d0a9a8a7b6c5d4e3",
        "x @ https://example.com/x-1.0.whl",
    ]
    source = {"package": "shop", "version": "1.0", "requirements": lines}
    assert load({"shop": entry(source=source)})["shop"].source.requirements == lines


def test_unavailable_packages_are_reported_by_app() -> None:
    apps = load({"shop": entry(packages=["ffmpeg", "ffmpegg", "g++"]), "blog": entry(packages=["jq"], domains=["blog.test"])})
    host = HostFacts(cpus=1, open_files=1000, unavailable_packages=frozenset({"ffmpegg"}))
    assert list(host_problems(apps, host)) == [
        "tornado_apps.shop.packages: no package source of this host has ffmpegg; correct the name, or add a source that has it"
    ]
