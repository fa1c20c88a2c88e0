"""Health check of a whole host: its services and the live processes of its apps."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.health import require_healthy
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup, ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.network import keepalived
from ansible_collections.funnel.tornado.plugins.module_utils.status.machine import service_statuses
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

#: Seconds between two checks.
INTERVAL = 1.0


def wait_until_healthy(apps: Sequence[str], services: Sequence[str], *, mongodb_port: int, timeout: float) -> list[str]:
    """Wait up to ``timeout`` seconds until the host is healthy; return the remaining problems.

    :arg services: names of services in `machine.PACKAGES`.
    """
    return poll(
        lambda: [*_service_problems(services, mongodb_port), *(problem for app in apps for problem in _app_problems(app))],
        operator.not_,
        timeout=timeout,
        interval=INTERVAL,
    )


def _service_problems(names: Sequence[str], mongodb_port: int) -> Iterator[str]:
    try:
        yield from (service.problem for service in service_statuses(names, mongodb_port=mongodb_port) if service.problem)
        if "keepalived" in names and not keepalived.is_healthy():
            yield f"keepalived: {keepalived.CHECK_SCRIPT} fails"
    except (CommandError, ServiceError) as error:
        yield str(error)


def _app_problems(app: str) -> Iterator[str]:
    layout = Layout(app)
    slot, release = layout.live_slot(), layout.live_release()
    if slot is None or release is None:  # before the first deploy or push
        return
    try:
        require_healthy(ProcessGroup(layout, slot, release, supervisord.connect()))
    except (ProcessGroupError, supervisord.SupervisorError, OSError) as error:
        yield f"{app}: {error}"
