from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.reboot import REPLACED, reboot_reasons

MAPS = "7f3a5c000000-7f3a5c022000 {} 00002000 fe:00 2238495                    {}\n"


def test_packages_and_kernels_are_reasons_to_reboot(tmp_path: Path) -> None:
    def reasons() -> list[str]:
        return [
            reason for reason in reboot_reasons(tmp_path) if not reason.startswith("processes")
        ]  # processes of the test machine

    assert reasons() == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run/reboot-required").touch()
    assert reasons() == ["/run/reboot-required exists"]
    (tmp_path / "run/reboot-required").unlink()
    (tmp_path / "vmlinuz").symlink_to(f"boot/vmlinuz-{platform.release()}")
    assert reasons() == []
    (tmp_path / "vmlinuz").unlink()
    for link in ("vmlinuz", "boot/vmlinuz"):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to("boot/vmlinuz-9.9.9-1-amd64")
        assert reasons() == [f"it runs kernel {platform.release()}, but 9.9.9-1-amd64 is installed"]
        (tmp_path / link).unlink()


def test_services_older_than_their_drop_ins_are_reasons_to_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of three services changed a minute ago; one service has started since, and one does not run.

    A further one changed before the clock was set back by a day.
    """
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    units = [("nginx", 7, now - 600, -60), ("etcd", 8, now, -60), ("haproxy", 0, 0, -60), ("mongod", 9, now - 600, 86_400)]
    for name, pid, started, changed in units:
        directory = tmp_path / f"etc/systemd/system/{name}.service.d"
        directory.mkdir(parents=True)
        (directory / "50-funnel.conf").touch()
        os.utime(directory / "50-funnel.conf", (time.time() + changed,) * 2)
        stamps = "".join(f"{stamp}TimestampMonotonic={int(started * 1e6)}\\n" for stamp in ("ActiveEnter", "StateChange"))
        shown = f"LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nMainPID={pid}\\n{stamps}"
        (tmp_path / f"{name}.service").write_text(shown)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\nprintf "$(cat "{tmp_path}/$3")"\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert list(reboot_reasons(tmp_path))[-1] == "units were changed since these services started: nginx"


@pytest.mark.parametrize(
    ("mode", "file", "replaced"),
    [
        ("r-xp", "/usr/sbin/nginx (deleted)", True),
        ("r-xp", "/usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)", True),
        ("r-xp", "/usr/sbin/nginx", False),
        ("r--p", "/usr/lib/locale/C.utf8/LC_CTYPE (deleted)", False),  # data, not code
        ("r-xp", "/memfd:jit (deleted)", False),
        ("rwxs", "/dev/zero (deleted)", False),
        ("r-xp", "/srv/shop/shared/a /usr/bin/python3 (deleted)", False),  # the name of an app's file
    ],
)
def test_replaced_code_is_distinguished_from_data_and_anonymous_memory(mode: str, file: str, *, replaced: bool) -> None:
    text = MAPS.format("r-xp", "/usr/bin/true") + MAPS.format(mode, file) + MAPS.format("rw-p", "[heap]")
    assert bool(REPLACED.search(text.encode())) == replaced
