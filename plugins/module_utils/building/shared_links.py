"""Shared paths of a release: links to ``/srv/<app>/shared``, with the files of the first release as their content."""

from __future__ import annotations

import grp
import os
from pathlib import Path, PurePosixPath

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.shared import is_directory
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import set_owner
from ansible_collections.funnel.tornado.plugins.module_utils.system import shared_data
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError
from ansible_collections.funnel.tornado.plugins.module_utils.system.shared_data import SharedDataError


def link_shared_paths(layout: Layout, app: App, source: Path) -> None:
    """Replace the shared paths in ``source``, which belongs to root, by links; create those that do not exist yet.

    :raises BuildError: when a path is, or is below, a link or a file of the source, or the data cannot be accessed.
    """
    if not app.shared:
        return
    seeds = source.with_name("seeds")
    seeds.mkdir()
    set_owner(seeds, os.geteuid(), grp.getgrnam(layout.user).gr_gid, 0o750)  # the app's user copies them
    for name in app.shared:
        _move(source, seeds, name, f"{VARIABLE}.{app.name}.shared.{name}")
    paths = app.shared_paths
    try:
        shared_data.provide(layout, seeds, list(paths), [path for path, options in paths.items() if options.url])
    except SharedDataError as error:
        raise BuildError(f"{VARIABLE}.{app.name}.shared: {error}") from error
    for path in paths:
        up = "../" * (2 + len(PurePosixPath(path).parts))
        (source / path).symlink_to(f"{up}shared/{path}")
    tree.remove(seeds)


def _move(source: Path, seeds: Path, name: str, key: str) -> None:
    """Move a shared path from the source to the seeds; create it there if it is a directory that the source lacks."""
    path = PurePosixPath(name)
    for part in (path, *path.parents):
        if (source / part).is_symlink():
            raise BuildError(f"{key}: {part} is a link in the source; remove it there, or share the path that it leads to")
    here, seed = source / path, seeds / path
    try:
        here.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BuildError(f"{key}: {error.filename} is a file in the source; remove it there, or share it instead") from error
    seed.parent.mkdir(parents=True, exist_ok=True)
    if here.exists():
        here.rename(seed)
    elif is_directory(name):
        seed.mkdir()
