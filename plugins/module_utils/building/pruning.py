"""Removal of what builds leave on a host: old releases, environments and Pythons that are unused, and a cache that has grown."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.module_utils.building.interpreter import remove_unused_pythons
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import Builder, BuildError

#: Size in MiB from which the cache of packages is emptied: all further packages are downloaded again.
MAX_CACHE_SIZE = 2048


def prune(layout: Layout, keep: set[str], count: int) -> list[str]:
    """Remove all releases but the ``count`` newest and those in ``keep``, and unused environments; return the removed ids."""
    newest_first = sorted(
        (path for path in layout.releases.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    removed = [path for path in newest_first[count:] if path.name not in keep]
    for path in removed:
        tree.remove(path)
    _remove_unused_environments(layout)
    remove_unused_pythons(layout.home.parent)
    return [path.name for path in removed]


def remove_unfinished(layout: Layout) -> None:
    """Remove what a failed or interrupted build has left: an unfinished release, and environments that no release uses."""
    for unfinished in layout.releases.glob(".building-*"):
        tree.remove(unfinished)
    _remove_unused_environments(layout)


def _remove_unused_environments(layout: Layout) -> None:
    used = {(path / "venv").resolve() for path in layout.releases.iterdir()}
    for environment in layout.environments.iterdir():
        if environment.resolve() not in used:  # /srv may be a link
            tree.remove(environment)


def limit_cache(layout: Layout) -> None:
    """Empty uv's cache if it has grown too large, or if its size cannot be determined."""
    measure = ["du", "--summarize", "--one-file-system", "--block-size=1M", "."]
    try:
        size = int(Builder(layout).run(measure, "du failed", directory=layout.cache, environment={}).split()[0])
    except (BuildError, ValueError):
        size = MAX_CACHE_SIZE + 1
    if size > MAX_CACHE_SIZE:
        tree.remove(layout.cache / "uv")
