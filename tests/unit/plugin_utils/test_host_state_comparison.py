"""Comparison of the host state with the desired state: any drift must send the module to the host."""

from __future__ import annotations

import dataclasses
import getpass
import grp
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status import host_state
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_state import HostState, collect_files, unprotected
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import ExistingFile, File, FileSet, FileState
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import FILE_MAX, SOMAXCONN, Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceState
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Sources
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import (
    KEY,
    VARIABLE,
    files_up_to_date,
    limits_up_to_date,
    load_host_state,
    uv_up_to_date,
)

OWNER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name
RUNNING = ServiceState(exists=True, active=True, enabled=True, main_pid=7, started_at=1e12, loaded_at=1e12)
KERNEL = {SOMAXCONN: 4096, FILE_MAX: 1_000_000}


class FakeTemplar:
    """A stand-in for Ansible's templar that resolves every variable to the same value."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        """Set the value."""
        self._value = value

    def resolve_variable_expression(self, _name: str) -> Mapping[str, Any]:
        """Return the value."""
        return self._value


def collected_file(file: File) -> FileState:
    """Return the state of a host's file that is up to date."""
    existing = ExistingFile(file.content, file.is_link, file.mode, uid=0, gid=0, mtime_ns=0)
    return dataclasses.replace(existing.state(KEY.encode()), owner=file.owner, group=file.group)


def make_state(directories: list[Path], files: Mapping[Path, FileState], **changes: Any) -> HostState:
    """Return a host state after a round trip through JSON, as a module's result makes it."""
    state = HostState(directories, files, {"nginx": RUNNING}, {"nginx": 20_000}, KERNEL, "1.2.3")
    data = json.loads(json.dumps(dataclasses.replace(state, **changes).to_data()))
    return load_host_state(FakeTemplar(data), {VARIABLE: ...})


def collect(directory: Path, **changes: Any) -> HostState:
    """Return a host state with the files of one directory."""
    files = collect_files(directory, KEY.encode())
    assert files is not None
    return make_state([directory], files, unprotected=unprotected(files), **changes)


def desired(content: str = "workers 1;", **changes: Any) -> File:
    """Return the desired state of the file of `root`."""
    return File("nginx.conf", content.encode(), **({"owner": OWNER, "group": GROUP} | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the configuration directory of a service, with one file."""
    root = tmp_path / "nginx"
    (root / "sites").mkdir(parents=True)
    (root / "nginx.conf").write_text("workers 1;")
    (root / "nginx.conf").chmod(0o644)
    return root


def test_files_and_a_running_service_are_up_to_date(root: Path) -> None:
    (root / "link").symlink_to("nginx.conf")
    link = File("link", b"nginx.conf", is_link=True)
    assert files_up_to_date(collect(root), FileSet(root, [desired(), link], ["sites/app.*"], ["default"]), {"name": "nginx"})


@pytest.mark.parametrize(
    "file",
    [
        desired("workers 2;"),
        desired(mode=0o640),
        desired(owner="nobody"),
        desired(group="nogroup"),
        desired(is_link=True),
        File("other.conf", b""),
        File("/etc/elsewhere", b""),
    ],
)
def test_a_differing_or_missing_file_is_drift(root: Path, file: File) -> None:
    assert files_up_to_date(collect(root), FileSet(root, [desired()]))
    assert not files_up_to_date(collect(root), FileSet(root, [file]))


@pytest.mark.parametrize("owns", ["sites/app.*", "sites/*", "*/app.old", "**/app.*"])
def test_an_obsolete_file_is_drift(root: Path, owns: str) -> None:
    (root / "sites/app.old").touch()
    assert files_up_to_date(collect(root), FileSet(root, [desired()], ["sites/other.*", "app.*"]))
    assert not files_up_to_date(collect(root), FileSet(root, [desired()], [owns]))
    assert not files_up_to_date(collect(root), FileSet(root, [desired()], [], ["sites/app.old"]))


def test_only_an_owned_directory_that_others_can_change_is_drift(root: Path) -> None:
    """A directory of the administrator is not repaired, so it must not count as drift in every run."""
    for name in ("sites/app.conf", "conf.d/own.conf"):
        (root / name).parent.mkdir(exist_ok=True, mode=0o755)
        (root / name).write_text("x")
    sites = FileSet(root, [desired()], ["sites/*"], keep=["sites/app.conf"])
    for directory in (root, root / "conf.d"):
        directory.chmod(0o2775)
    for owned in (sites, FileSet(root, [desired()], ["*"], keep=["*"])):
        assert files_up_to_date(collect(root), owned)
    (root / "sites").chmod(0o775)
    assert not files_up_to_date(collect(root), sites)
    assert files_up_to_date(collect(root), FileSet(root, [desired()]))


def test_a_state_that_was_not_collected_is_drift(root: Path, tmp_path: Path) -> None:
    assert not files_up_to_date(collect(root), FileSet(tmp_path, [], ["*"]))
    for empty in (load_host_state(FakeTemplar({}), {}), load_host_state(FakeTemplar({}), {VARIABLE: ...})):
        assert not files_up_to_date(empty, FileSet(root, [desired()]))
        assert not limits_up_to_date(empty, Limits(1, 1, [], kernel=KERNEL))


@pytest.mark.parametrize("change", [{"active": False}, {"enabled": False}, {"loaded_at": 1.0}])
def test_a_service_that_does_not_run_with_its_files_is_drift(root: Path, change: dict[str, Any]) -> None:
    services = {"nginx": dataclasses.replace(RUNNING, **change)}
    files = FileSet(root, [desired()])
    assert not files_up_to_date(collect(root, services=services), files, {"name": "nginx"})
    assert not files_up_to_date(collect(root), files, {"name": "haproxy"})
    assert not files_up_to_date(collect(root), files, {"name": "nginx", "listener": "nginx.socket"})


@pytest.mark.parametrize(("on_change", "up_to_date"), [("reload", True), ("restart_if_idle", False)])
def test_a_unit_newer_than_its_service_is_drift_if_a_change_restarts_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, on_change: str, *, up_to_date: bool
) -> None:
    monkeypatch.setattr(systemd, "UNIT_DIRECTORIES", [root])
    state = collect(root, services={"nginx": dataclasses.replace(RUNNING, loaded_at=1.0)})
    service = {"name": "nginx", "on_change": on_change}
    assert files_up_to_date(state, FileSet(root, [desired()]), service) == up_to_date


@pytest.mark.parametrize("before", ["", FILE_MAX])
def test_limits_in_effect_are_up_to_date_and_others_are_drift(before: str) -> None:
    limits = Limits(16_384, 4096, ["nginx"], kernel=KERNEL)
    files = {Path(file.path): collected_file(file) for file in limits.files(before)}

    def up_to_date(limits: Limits, **changes: Any) -> bool:
        return limits_up_to_date(make_state([Path("/etc")], files, **changes), limits)

    assert up_to_date(limits)
    assert up_to_date(limits, services={"nginx": dataclasses.replace(RUNNING, main_pid=0)}, open_files={})
    assert not up_to_date(limits, open_files={"nginx": 1024})
    assert not up_to_date(limits, services={})
    assert not up_to_date(dataclasses.replace(limits, open_files=8192))
    assert not up_to_date(dataclasses.replace(limits, services=["nginx", "other"]))
    assert not up_to_date(dataclasses.replace(limits, kernel=KERNEL | {SOMAXCONN: 128}))


def test_another_version_or_source_of_uv_is_drift() -> None:
    sources = Sources(index_url="https://u:p@a/simple")
    state = make_state([Path("/etc/uv")], {Path("/etc/uv", file.path): collected_file(file) for file in sources.files()})
    assert uv_up_to_date(state, "1.2.3", sources)
    assert not uv_up_to_date(state, "1.2.4", sources)
    assert not uv_up_to_date(state, "1.2.3", Sources(index_url="https://u:q@a/simple"))
    assert not uv_up_to_date(state, "1.2.3", dataclasses.replace(sources, wheelhouse=Path("/srv/wheels")))


def test_digests_of_files_depend_on_the_key(root: Path) -> None:
    collected = [collect_files(root, key) or {} for key in (b"one", b"two")]
    assert [list(files) for files in collected] == [[root / "nginx.conf"]] * 2
    first, second = (files[root / "nginx.conf"] for files in collected)
    assert first.digest != second.digest
    assert "workers" not in str(first)


def test_a_directory_beyond_a_bound_or_with_unprintable_names_is_omitted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert collect_files(root / "missing", b"") == {}
    for bound in ("MAX_BYTES", "MAX_FILES"):
        with monkeypatch.context() as patched:
            patched.setattr(host_state, bound, 0)
            assert collect_files(root, b"") is None
    assert len(collect_files(root, b"") or {}) == 1
    (root / os.fsdecode(b"\xff")).touch()
    assert collect_files(root, b"") is None
