from __future__ import annotations

import time

from ansible_collections.funnel.tornado.plugins.module_utils.status.host_health import wait_until_healthy


def test_an_app_without_a_live_release_is_skipped() -> None:
    assert wait_until_healthy(["no-such-app"], [], mongodb_port=27017, timeout=60) == []


def test_an_unhealthy_service_is_waited_for() -> None:
    began = time.monotonic()
    found = wait_until_healthy([], ["keepalived"], mongodb_port=27017, timeout=0.5)
    assert time.monotonic() - began > 0.5
    assert found
    assert all("keepalived" in problem or "systemctl" in problem for problem in found)
