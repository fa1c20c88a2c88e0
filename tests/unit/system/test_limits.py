from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSetResult
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import (
    SYSCTL_FILE,
    DropIn,
    Limits,
    LimitsError,
    Sysctl,
    apply,
    overriding_drop_in,
    raise_process_limit,
)

ALL_CAPABILITIES = "000001ffffffffff"
WITHOUT_SYS_RESOURCE = "00000000fcecbfff"


def fake_proc(directory: Path, *, hard: int = 20000, capabilities: str = WITHOUT_SYS_RESOURCE, nr_open: int = 1048576) -> Path:
    values = {
        "1/status": f"Name:\tsystemd\nCapEff:\t{capabilities}\n",
        "1/limits": f"Limit  Soft Limit  Hard Limit  Units\nMax open files            1024       {hard}      files\n",
        "self/uid_map": "         0          0 4294967295\n",
        "sys/fs/nr_open": f"{nr_open}\n",
        "sys/fs/file-max": "9223372036854775807\n",
        "sys/net/core/somaxconn": "4096\n",
    }
    for name, text in values.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def test_a_container_is_limited_by_its_hard_limit(tmp_path: Path) -> None:
    capacity = Capacity.of_host(fake_proc(tmp_path))
    assert capacity.max_open_files == 20000
    assert capacity.problem(20000) == ""
    assert capacity.problem(50000) == (
        "limits_open_files: 50000 exceeds the maximum of this host: PID 1's hard limit is 20000 and it lacks "
        "CAP_SYS_RESOURCE; set at most 20000, or raise the container's limit"
    )


def test_a_host_is_limited_by_the_kernel(tmp_path: Path) -> None:
    capacity = Capacity.of_host(fake_proc(tmp_path, capabilities=ALL_CAPABILITIES))
    assert capacity.problem(1048576) == ""
    assert "fs.nr_open is 1048576; set at most 1048576, or raise fs.nr_open" in capacity.problem(1048577)


def test_the_capability_does_not_count_in_a_user_namespace(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, capabilities=ALL_CAPABILITIES)
    (proc / "self/uid_map").write_text("0 100000 65536\n")
    assert Capacity.of_host(proc).max_open_files == 20000


def test_a_read_only_kernel_setting_is_reported_with_both_values() -> None:
    read_only = Sysctl("kernel.cap_last_cap", "limits_backlog", 1000)  # read-only even for root
    current = read_only.current
    assert f"limits_backlog: requires kernel.cap_last_cap >= 1000, but it is {current} and read-only" in read_only.problem()
    assert Sysctl("kernel.cap_last_cap", "limits_backlog", current).problem() == ""


def test_a_limit_above_the_maximum_of_the_host_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LimitsError, match="50000 exceeds the maximum of this host: PID 1's hard limit is 20000"):
        apply(Limits(50000, 4096, ["nginx"], fake_proc(tmp_path)))


def test_drop_ins_allow_raising_the_limit_later(tmp_path: Path) -> None:
    files = {file.path: file.content.decode() for file in Limits(16384, 4096, ["nginx"], fake_proc(tmp_path)).files("")}
    drop_in = files["/etc/systemd/system/nginx.service.d/50-funnel-limits.conf"]
    assert "LimitNOFILE=16384:infinity" in drop_in.splitlines()


@pytest.mark.parametrize(
    ("name", "text", "limits"),
    [
        ("etc/systemd/system/nginx.service.d/override.conf", "[Service]\nLimitNOFILE=9000\n", (9000, 9000)),
        ("usr/lib/systemd/system/nginx.service.d/70-vendor.conf", "[Service]\nLimitNOFILE=512:1024\n", (512, 1024)),
        ("etc/systemd/system/nginx.service.d/override.conf", "[Service]\nLimitNOFILE=512:infinity\n", (512, sys.maxsize)),
        ("etc/systemd/system/nginx.service.d/10-early.conf", "[Service]\nLimitNOFILE=9000\n", None),
        ("etc/systemd/system/nginx.service.d/override.conf", "[Service]\nRestart=always\n", None),
    ],
)
def test_a_later_drop_in_overrides_the_limit(tmp_path: Path, name: str, text: str, limits: tuple[int, int] | None) -> None:
    own = "etc/systemd/system/nginx.service.d/50-funnel-limits.conf"
    for path, content in ((own, "[Service]\nLimitNOFILE=16384:infinity\n"), (name, text)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert overriding_drop_in("nginx", tmp_path) == (DropIn(f"/{name}", *limits) if limits else None)


def test_drop_ins_override_the_limit_in_the_order_of_systemd(tmp_path: Path) -> None:
    def drop_in(path: str, limit: int) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"[Service]\nLimitNOFILE={limit}\n")
        return file

    drop_in("usr/lib/systemd/system/service.d/60-all.conf", 1)
    assert overriding_drop_in("nginx", tmp_path) == DropIn("/usr/lib/systemd/system/service.d/60-all.conf", 1, 1)
    drop_in("usr/lib/systemd/system/nginx.service.d/60-all.conf", 2)
    assert overriding_drop_in("nginx", tmp_path) == DropIn("/usr/lib/systemd/system/nginx.service.d/60-all.conf", 2, 2)
    drop_in("run/systemd/system/nginx.service.d/60-all.conf", 3)
    first = drop_in("etc/systemd/system/nginx.service.d/60-all.conf", 4)
    assert overriding_drop_in("nginx", tmp_path) == DropIn("/etc/systemd/system/nginx.service.d/60-all.conf", 4, 4)
    drop_in("etc/systemd/system/service.d/70-all.conf", 5)
    assert overriding_drop_in("nginx", tmp_path) == DropIn("/etc/systemd/system/service.d/70-all.conf", 5, 5)
    (tmp_path / "etc/systemd/system/nginx.service.d/70-all.conf").symlink_to(os.devnull)
    first.unlink()
    first.symlink_to(os.devnull)
    assert overriding_drop_in("nginx", tmp_path) is None, "both are masked"


def test_a_limit_with_which_supervisord_cannot_start_is_refused() -> None:
    container, machine = (Capacity(1048576, 20000, can_raise=can_raise) for can_raise in (False, True))
    refused = DropIn("/x.conf", 1024, 4096).problem(16384, container)
    assert "supervisord cannot start with 4096 open files, which /x.conf sets" in refused
    assert DropIn("/x.conf", 1024, 4096).problem(16384, machine) == ""
    assert DropIn("/x.conf", 1024, 16384).problem(16384, container) == ""


def test_the_file_of_kernel_settings_does_not_depend_on_its_own_effect(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path)
    (proc / "sys/fs/file-max").write_text("1000\n")
    limits = Limits(16384, 9000, [], proc)

    def settings(before: str) -> str:
        return next(file.content.decode() for file in limits.files(before) if file.path == SYSCTL_FILE)

    first = settings("")
    assert "fs.file-max = 32768" in first
    assert "net.core.somaxconn = 9000" in first
    (proc / "sys/fs/file-max").write_text("32768\n")
    (proc / "sys/net/core/somaxconn").write_text("9000\n")
    assert settings(first) == first


def test_a_higher_backlog_is_kept_and_a_sufficient_file_max_is_not_set(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path)
    (proc / "sys/net/core/somaxconn").write_text("65535\n")
    (file,) = [file for file in Limits(16384, 4096, [], proc).files("") if file.path == SYSCTL_FILE]
    assert "net.core.somaxconn = 65535" in file.content.decode()
    assert "file-max" not in file.content.decode()


def test_limits_of_running_processes_are_only_raised() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with subprocess.Popen(["sh", "-c", "ulimit -Sn 100 && exec sleep 60"], stdout=subprocess.DEVNULL) as process:
        while open_file_limits(process.pid)[0] != 100:
            assert process.poll() is None
        result = FileSetResult()
        raise_process_limit("sleep", process.pid, 200, result, check_mode=True)
        assert open_file_limits(process.pid) == (100, hard)
        raise_process_limit("sleep", process.pid, 200, result, check_mode=False)
        assert open_file_limits(process.pid) == (200, hard)
        raise_process_limit("sleep", process.pid, 150, result, check_mode=False)
        assert open_file_limits(process.pid) == (200, hard)
        process.kill()
    assert result.files == [f"/proc/{process.pid}/limits"] * 2


def test_limits_of_a_process_are_read_from_proc() -> None:
    assert open_file_limits(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.parametrize("services", [[], ["nginx", "supervisor"]])
def test_the_limit_applies_to_logins_too(tmp_path: Path, services: list[str]) -> None:
    text = Limits(16384, 4096, services, fake_proc(tmp_path)).files("")[0].content.decode()
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["*", "soft", "nofile", "16384"],
        ["*", "hard", "nofile", "16384"],
        ["root", "soft", "nofile", "16384"],
        ["root", "hard", "nofile", "16384"],
    ]
