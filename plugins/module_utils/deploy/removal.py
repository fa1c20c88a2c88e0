"""Taking an app off a host: its processes after they have finished, then all that it owns, and its users for good."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple

from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import stop_app
from ansible_collections.funnel.tornado.plugins.module_utils.system import accounts
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import is_managed
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificateFiles, remove_certificate


class PushFiles(NamedTuple):
    """The entry that allows pushes to an app, and the Git repository that receives them."""

    entry: Path
    repository: Path


def find_resources(layout: Layout, push_files: PushFiles) -> list[str]:
    """Return what there is of an app on this host, as lines of a diff; nothing if no app of that name is there."""
    if not is_managed(layout):
        return []
    paths: list[Path] = [layout.home, layout.logs, *(layout.supervisor_file(slot) for slot in SLOTS)]
    certificate = CertificateFiles(APP_SET, layout.app, layout.base)
    paths += [certificate.chain, certificate.key, certificate.lineage.configuration]
    paths += push_files
    return [*(str(path) for path in paths if os.path.lexists(path)), *(f"user {user}" for user in users(layout))]


def users(layout: Layout) -> list[str]:
    """Return the users of an app that the host has: the one that builds it before the one that the app is known by."""
    homes = {user.pw_name: user.pw_dir for user in pwd.getpwall()}
    wanted = {layout.builder: layout.cache, layout.user: layout.home}
    return [user for user, home in wanted.items() if homes.get(user) == str(home)]


def remove(layout: Layout, push_files: PushFiles) -> None:
    """End the app and remove all of it, what it wrote into ``shared`` too; its user last, by whom the rest is known as its.

    Each step may find that an earlier run has done it, and was broken off later.

    :raises SupervisorError: when a process of supervisord's does not end.
    :raises AccountError: when another process does not end.
    :raises TreeError: when files cannot be removed.
    :raises CommandError: when a user cannot be changed, or certbot does not forget the certificate.
    """
    push_files.entry.unlink(missing_ok=True)
    for user in users(layout):
        accounts.lock(user)
    stop_app(layout)
    for user in users(layout):
        accounts.clean_up(user)
    remove_certificate(CertificateFiles(APP_SET, layout.app, layout.base))
    for directory in (push_files.repository, layout.home, layout.logs):
        tree.remove(directory)
    for user in users(layout):
        accounts.retire(user)
