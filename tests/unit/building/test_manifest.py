from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import (
    HealthCheck,
    ReleaseManifest,
    SharedPath,
    StaticFiles,
    Worker,
    read_manifest,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

MANIFEST = ReleaseManifest(
    app="shop",
    id="1f2e",
    revision="8f2b1c0d",
    argv=["python", "{release}/runner"],
    runner=True,
    workers={"mail": Worker(["sh", "-c", "mail"], 3)},
    environment={"THEME": "dark"},
    processes=2,
    port=8000,
    open_files=4096,
    drain=20,
    health=HealthCheck("/up", 10),
    host="shop.test",
    static=StaticFiles("/static/", "www"),
    hooks={"before_switch": ["python", "migrate.py"]},
    hooks_once=["before_switch"],
    hooks_timeout=60,
    soak=5,
    soak_errors=1,
    keep_releases=3,
    built="2026-01-01T00:00:00+00:00",
    by="alice@desk",
)

#: ``release.json`` as version 0.1.0 of the collection wrote it, with a key that no later version has.
OLD = """{
 "id": "1f2e", "revision": "8f2b1c0d", "app": "shop", "argv": ["python", "{release}/runner"], "runner": true,
 "workers": {"mail": {"argv": ["sh", "-c", "mail"], "count": 3, "cpu": 1}}, "environment": {"THEME": "dark"}, "processes": 2,
 "port": 8000, "open_files": 4096, "drain": 20, "health": {"path": "/up", "timeout": 10, "method": "GET"}, "host": "shop.test",
 "static": ["/static/", "www"], "hooks": {"before_switch": ["python", "migrate.py"]}, "hooks_once": true, "hooks_timeout": 60,
 "soak": 5, "soak_errors": 1, "built": "2026-01-01T00:00:00+00:00", "by": "alice@desk", "unknown": {}
}"""


def test_json_restores_the_same_manifest() -> None:
    assert ReleaseManifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_shared_paths_survive_the_round_trip() -> None:
    manifest = dataclasses.replace(MANIFEST, shared={"media": SharedPath("/media/", backup=False), "instance": SharedPath()})
    assert ReleaseManifest.from_json(manifest.to_json()) == manifest


def test_release_json_of_older_versions_is_readable_and_unknown_keys_are_ignored() -> None:
    assert ReleaseManifest.from_json(OLD) == MANIFEST


def test_the_slowest_process_decides_when_all_have_stopped() -> None:
    assert MANIFEST.stop_timeout == 20
    slow = dataclasses.replace(MANIFEST, workers={"mail": Worker(["mail"], 1, 90), "other": Worker(["other"], 1)})
    assert slow.stop_timeout == 90


def test_missing_keys_get_defaults() -> None:
    manifest = ReleaseManifest.from_json('{"app": "shop", "id": "1f2e", "revision": "r1", "health": {"path": "/up"}}')
    assert manifest == ReleaseManifest(app="shop", id="1f2e", revision="r1", health=HealthCheck("/up"))
    assert (manifest.processes, manifest.port, manifest.workers, manifest.hooks, manifest.soak) == (1, None, {}, {}, 0)


def test_the_launcher_finds_its_keys_in_release_json() -> None:
    written = json.loads(MANIFEST.to_json())
    stop = {"stop_timeout": None, "stop_signal": "TERM", "stop_group": True}
    assert written["workers"]["mail"] == {"argv": ["sh", "-c", "mail"], "count": 3, "singleton": False} | stop
    assert written["health"]["timeout"] == 10
    assert written["hooks"]["before_switch"] == ["python", "migrate.py"]
    keys = ("app", "id", "argv", "runner", "environment", "processes", "port", "open_files", "drain")
    assert [written[key] for key in keys] == [getattr(MANIFEST, key) for key in keys]


@pytest.mark.parametrize("text", ["", "[1]", '{"app": "shop"}', '{"app": "shop", "id": "1", "revision": "r", "health": 1}'])
def test_malformed_manifests_are_rejected(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        ReleaseManifest.from_json(text)


def test_reading_a_missing_release_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(Layout("shop", tmp_path), "1f2e")


@pytest.mark.parametrize(("processes", "expected"), [(1, "1 process"), (2, "2 processes")])
def test_the_size_counts_processes(processes: int, expected: str) -> None:
    assert ReleaseManifest(app="shop", id="1f2e", revision="r1", processes=processes).process_summary == expected
