from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import SEAL, is_damaged, is_intact, seal
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import choose_undamaged
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "lib").mkdir(parents=True)
    (directory / "lib/a.py").write_text("a = 1\n")
    (directory / "link").symlink_to("lib/a.py")
    seal(directory)
    return directory


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: (tree / "lib/a.py").unlink(),
        lambda tree: (tree / "lib/a.py").write_text(""),
        lambda tree: (tree / "lib/a.py").write_text("a = 2\n"),
        lambda tree: (tree / "lib/a.py").chmod(0o600),
        lambda tree: replace_by_directory(tree / "lib/a.py"),
        lambda tree: (tree / "lib").chmod(0o700),
        lambda tree: (tree / "lib/b.py").touch(),
        lambda tree: (tree / "link").rename(tree / "other"),
        lambda tree: tree.rename(tree.with_name("gone")),
    ],
)
def test_every_damage_of_a_tree_is_found(tree: Path, damage: Callable[[Path], object]) -> None:
    assert is_intact(tree)
    damage(tree)
    assert not is_intact(tree)


def test_record_is_for_root_alone(tree: Path) -> None:
    assert (tree / SEAL).stat().st_mode & 0o777 == 0o600


def test_compiled_bytecode_and_trees_without_a_record_are_intact(tree: Path, tmp_path: Path) -> None:
    (tree / "lib/__pycache__").mkdir()
    (tree / "lib/__pycache__/a.pyc").touch()
    assert is_intact(tree)
    assert is_intact(tmp_path)


def build(layout: Layout, release: str, environment: str = "e1") -> None:
    """Lay out a sealed release with a sealed environment."""
    (layout.environments / environment / "bin").mkdir(parents=True)
    seal(layout.environments / environment)
    layout.release(release).mkdir(parents=True)
    layout.manifest(release).write_text(ReleaseManifest("shop", release, "r1").to_json())
    (layout.release(release) / "venv").symlink_to(f"../../environments/{environment}")
    seal(layout.release(release))


def truncate_manifest(layout: Layout) -> None:
    layout.manifest("1f2e").write_text("{\n")


def remove_interpreter(layout: Layout) -> None:
    (layout.environments / "e1/bin").rmdir()


@pytest.mark.parametrize("damage", [truncate_manifest, remove_interpreter])
def test_a_damaged_release_is_replaced_by_one_with_another_id(tmp_path: Path, damage: Callable[[Layout], None]) -> None:
    layout, planned = Layout("shop", tmp_path), ReleaseManifest("shop", "1f2e", "r1")
    assert choose_undamaged(layout, planned) == planned, "it is not built yet"
    build(layout, "1f2e")
    assert choose_undamaged(layout, planned) == planned
    damage(layout)
    assert is_damaged(layout, "1f2e")
    replacement = choose_undamaged(layout, planned)
    assert replacement.id != "1f2e"
    build(layout, replacement.id, "e2")
    assert choose_undamaged(layout, planned) == replacement


def test_a_replacement_stays_the_release_after_the_damaged_one_is_pruned(tmp_path: Path) -> None:
    layout, planned = Layout("shop", tmp_path), ReleaseManifest("shop", "1f2e", "r1")
    build(layout, "1f2e")
    truncate_manifest(layout)
    replacement = choose_undamaged(layout, planned)
    build(layout, replacement.id, "e2")
    layout.release("1f2e").rename(tmp_path / "pruned")
    assert choose_undamaged(layout, planned) == replacement
