"""Whether a host is fit to serve: its services and the apps' processes, as they are now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup, ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.network import keepalived
from ansible_collections.funnel.tornado.plugins.module_utils.status.machine import look_at_services
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

#: Seconds between two looks.
INTERVAL = 1.0


def wait_until_well(apps: Sequence[str], services: Sequence[str], *, mongodb_port: int, timeout: float) -> list[str]:
    """Return what is still wrong after at most ``timeout`` seconds; nothing as soon as that is nothing.

    :arg services: names of services, as `machine.PACKAGES` has them.
    """
    give_up = time.monotonic() + timeout
    while True:
        found = [*_of_services(services, mongodb_port), *(problem for app in apps for problem in _of_app(app))]
        if not found or time.monotonic() > give_up:
            return found
        time.sleep(INTERVAL)


def _of_services(names: Sequence[str], mongodb_port: int) -> Iterator[str]:
    try:
        yield from (one.problem for one in look_at_services(names, mongodb_port=mongodb_port) if one.problem)
        if "keepalived" in names and not keepalived.is_healthy():
            yield f"keepalived: {keepalived.CHECK_SCRIPT} fails"
    except (CommandError, ServiceError) as error:
        yield str(error)


def _of_app(app: str) -> Iterator[str]:
    layout = Layout(app)
    slot, release = layout.live_slot(), layout.live_release()
    if slot is None or release is None:  # nothing was deployed or pushed yet
        return
    try:
        ProcessGroup(layout, slot, release, supervisord.connect()).require_healthy()
    except (ProcessGroupError, supervisord.SupervisorError, OSError) as error:
        yield f"{app}: {error}"
