from __future__ import annotations

import time

from ansible_collections.funnel.tornado.plugins.module_utils.status.host_health import wait_until_well


def test_what_is_served_of_no_app_is_well() -> None:
    assert wait_until_well(["no-such-app"], [], mongodb_port=27017, timeout=60) == []


def test_what_is_not_well_is_waited_for() -> None:
    began = time.monotonic()
    found = wait_until_well([], ["keepalived"], mongodb_port=27017, timeout=0.5)
    assert time.monotonic() - began > 0.5
    assert found
    assert all("keepalived" in problem or "systemctl" in problem for problem in found)
