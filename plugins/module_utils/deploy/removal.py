"""Removal of an app from a host: graceful shutdown of its processes, deletion of its resources, retirement of its users."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ansible_collections.funnel.tornado.plugins.module_utils.building.interpreter import remove_unused_pythons
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import (
    clear_slot,
    drain_connections,
    slot_releases,
    stop_workers,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisor_config import STOP_MARGIN
from ansible_collections.funnel.tornado.plugins.module_utils.system import accounts
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import is_managed
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificateFiles, remove_certificate, unused_names


class PushFiles(NamedTuple):
    """The entry that allows pushes to an app, and the Git repository that receives them."""

    entry: Path
    repository: Path


def find_resources(layout: Layout, push_files: PushFiles, certificates: Collection[str] = ()) -> list[str]:
    """Return the resources of an app on this host as lines of a diff; none if this collection did not create the app.

    :arg certificates: names of certificates that other apps need.
    """
    if not is_managed(layout):
        return []
    paths: list[Path] = [layout.home, layout.logs, *(layout.supervisor_file(slot) for slot in SLOTS)]
    for certificate in _certificates(layout, certificates):
        paths += [certificate.chain, certificate.key, certificate.lineage.configuration]
    paths += push_files
    return [*(str(path) for path in paths if os.path.lexists(path)), *(f"user {user}" for user in app_users(layout))]


def _certificates(layout: Layout, kept: Collection[str]) -> list[CertificateFiles]:
    """Return the certificate of an app, and those that no app uses any more, such as a wildcard of which it was the last one."""
    names = {layout.app, *unused_names(APP_SET, kept, layout.base, except_site=layout.app)}
    return [CertificateFiles(APP_SET, name, layout.base) for name in sorted(names)]


def app_users(layout: Layout) -> list[str]:
    """Return the existing users of an app: its builder, then the user that its processes run as."""
    homes = {user.pw_name: user.pw_dir for user in pwd.getpwall()}
    expected = {layout.builder: layout.cache, layout.user: layout.home}
    return [user for user, home in expected.items() if homes.get(user) == str(home)]


def remove(layout: Layout, push_files: PushFiles, certificates: Collection[str] = ()) -> None:
    """Stop the app gracefully and delete all its resources, including ``shared``.

    The users, which identify the rest, go last, so that the next run completes an interrupted removal. Every step is idempotent.

    :arg certificates: names of certificates that other apps need.
    :raises SupervisorError: when a process under supervisord does not end.
    :raises AccountError: when another process does not end.
    :raises TreeError: when files cannot be deleted.
    :raises CommandError: when a user cannot be changed, or certbot cannot delete the certificate.
    """
    push_files.entry.unlink(missing_ok=True)
    for user in app_users(layout):
        accounts.lock(user)
    stop_app(layout)
    for user in app_users(layout):
        accounts.clean_up(user)
    for certificate in _certificates(layout, certificates):
        remove_certificate(certificate)
    for directory in (push_files.repository, layout.home, layout.logs):
        tree.remove(directory)
    remove_unused_pythons(layout.home.parent)
    for user in app_users(layout):
        accounts.retire(user)


def stop_app(layout: Layout) -> None:
    """Shut down all processes of an app gracefully: drain their connections, then stop them.

    :raises SupervisorError: when a process does not end.
    """
    manifests = [read_manifest(layout, release) for release in slot_releases(layout)]
    server = supervisord.connect()
    for slot in SLOTS:
        stop_workers(layout, slot, server)
        drain_connections(layout, slot, max((manifest.drain for manifest in manifests), default=0))
        clear_slot(layout, slot, server, max((manifest.stop_timeout for manifest in manifests), default=0) + STOP_MARGIN)
