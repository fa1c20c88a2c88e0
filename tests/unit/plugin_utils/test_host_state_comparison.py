"""What a host tells of itself is judged on the controller as the host itself would: whatever differs sends a module there."""

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
from ansible_collections.funnel.tornado.plugins.module_utils.system import file_set
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import ExistingFile, File, FileSet, FileState
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import FILE_MAX, SOMAXCONN, Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceState
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Sources
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import KEY, VARIABLE, Known

OWNER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name
RUNS = ServiceState(exists=True, active=True, enabled=True, main_pid=7, started_at=1e12, loaded_at=1e12)
KERNEL = {SOMAXCONN: 4096, FILE_MAX: 1_000_000}


class Variables:
    """Stands for Ansible's templar, which resolves a variable by its name."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        """Have one variable, whatever its name."""
        self._told = told

    def resolve_variable_expression(self, _name: str) -> Mapping[str, Any]:
        """Return it."""
        return self._told


def found(file: File) -> dict[str, Any]:
    """Return what a host that has the file tells of it."""
    existing = ExistingFile(file.content, file.is_link, file.mode, uid=0, gid=0, mtime_ns=0)
    return dataclasses.asdict(dataclasses.replace(existing.state(KEY.encode()), owner=file.owner, group=file.group))


def known(directories: list[Path], files: Mapping[str, Any], **changes: Any) -> Known:
    """Return what is known of a host, over JSON as a module's result is."""
    told = {
        "directories": [str(directory) for directory in directories],
        "files": files,
        "services": {"nginx": dataclasses.asdict(RUNS)},
        "open_files": {"nginx": 20_000},
        "kernel": KERNEL,
        "uv": "1.2.3",
    }
    return Known.of(Variables(json.loads(json.dumps(told | changes))), {VARIABLE: ...})


def looked_at(directory: Path, **changes: Any) -> Known:
    """Return what is known of a host that has been looked at, in one directory."""
    files = host_state.files_of(directory, KEY.encode())
    assert files is not None
    return known([directory], {path: dataclasses.asdict(file) for path, file in files.items()}, **changes)


def wanted(content: str = "workers 1;", **changes: Any) -> File:
    """Return the file of `root` as it has to be."""
    return File("nginx.conf", content.encode(), **({"owner": OWNER, "group": GROUP} | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the directory of a service with its one file."""
    root = tmp_path / "nginx"
    (root / "sites").mkdir(parents=True)
    (root / "nginx.conf").write_text("workers 1;")
    (root / "nginx.conf").chmod(0o644)
    return root


def test_what_is_as_it_has_to_be_is_known_to_be(root: Path) -> None:
    (root / "link").symlink_to("nginx.conf")
    link = File("link", b"nginx.conf", is_link=True)
    assert looked_at(root).has_files(FileSet(root, [wanted(), link], ["sites/app.*"], ["default"]), {"name": "nginx"})


@pytest.mark.parametrize(
    "file",
    [
        wanted("workers 2;"),
        wanted(mode=0o640),
        wanted(owner="nobody"),
        wanted(group="nogroup"),
        wanted(is_link=True),
        File("other.conf", b""),
        File("/etc/elsewhere", b""),
    ],
)
def test_a_file_that_is_not_as_it_has_to_be_is_asked_for(root: Path, file: File) -> None:
    assert looked_at(root).has_files(FileSet(root, [wanted()]))
    assert not looked_at(root).has_files(FileSet(root, [file]))


@pytest.mark.parametrize("owns", ["sites/app.*", "sites/*", "*/app.old", "**/app.*"])
def test_a_file_that_has_to_go_is_asked_for(root: Path, owns: str) -> None:
    (root / "sites/app.old").touch()
    assert looked_at(root).has_files(FileSet(root, [wanted()], ["sites/other.*", "app.*"]))
    assert not looked_at(root).has_files(FileSet(root, [wanted()], [owns]))
    assert not looked_at(root).has_files(FileSet(root, [wanted()], [], ["sites/app.old"]))


def test_what_nobody_looked_at_is_asked_for(root: Path, tmp_path: Path) -> None:
    assert not looked_at(root).has_files(FileSet(tmp_path, [], ["*"]))
    for nothing in (Known.of(Variables({}), {}), Known.of(Variables({}), {VARIABLE: ...})):
        assert not nothing.has_files(FileSet(root, [wanted()]))
        assert not nothing.has_limits(Limits(1, 1, [], kernel=KERNEL))


@pytest.mark.parametrize("change", [{"active": False}, {"enabled": False}, {"loaded_at": 1.0}])
def test_a_service_that_does_not_run_with_its_files_is_asked_for(root: Path, change: dict[str, Any]) -> None:
    services = {"nginx": dataclasses.asdict(dataclasses.replace(RUNS, **change))}
    assert not looked_at(root, services=services).has_files(FileSet(root, [wanted()]), {"name": "nginx"})
    assert not looked_at(root).has_files(FileSet(root, [wanted()]), {"name": "haproxy"})
    assert not looked_at(root).has_files(FileSet(root, [wanted()]), {"name": "nginx", "listener": "nginx.socket"})


@pytest.mark.parametrize(("on_change", "known"), [("reload", True), ("restart_if_idle", False)])
def test_a_unit_that_a_service_was_not_started_with_is_asked_for_where_a_restart_helps(
    root: Path, monkeypatch: pytest.MonkeyPatch, on_change: str, *, known: bool
) -> None:
    monkeypatch.setattr(file_set, "UNIT_DIRECTORIES", [root])
    services = {"nginx": dataclasses.asdict(dataclasses.replace(RUNS, loaded_at=1.0))}
    told = looked_at(root, services=services)
    assert told.has_files(FileSet(root, [wanted()]), {"name": "nginx", "on_change": on_change}) == known


@pytest.mark.parametrize("before", ["", FILE_MAX])
def test_limits_that_are_given_are_known_to_be(before: str) -> None:
    limits = Limits(16_384, 4096, ["nginx"], kernel=KERNEL)
    files = {file.path: found(file) for file in limits.files(before)}

    def has(limits: Limits, **changes: Any) -> bool:
        return known([Path("/etc")], files, **changes).has_limits(limits)

    assert has(limits)
    assert has(limits, services={"nginx": dataclasses.asdict(dataclasses.replace(RUNS, main_pid=0))}, open_files={})
    assert not has(limits, open_files={"nginx": 1024})
    assert not has(limits, services={})
    assert not has(dataclasses.replace(limits, open_files=8192))
    assert not has(dataclasses.replace(limits, services=["nginx", "other"]))
    assert not has(dataclasses.replace(limits, kernel=KERNEL | {SOMAXCONN: 128}))


def test_uv_is_known_by_its_version_and_by_where_it_fetches_from() -> None:
    sources = Sources(index_url="https://u:p@a/simple")
    there = known([Path("/etc/uv")], {f"/etc/uv/{file.path}": found(file) for file in sources.files()})
    assert there.has_uv("1.2.3", sources)
    assert not there.has_uv("1.2.4", sources)
    assert not there.has_uv("1.2.3", Sources(index_url="https://u:q@a/simple"))
    assert not there.has_uv("1.2.3", dataclasses.replace(sources, wheelhouse=Path("/srv/wheels")))


def test_what_is_told_of_a_file_is_of_no_use_without_the_key(root: Path) -> None:
    told: list[dict[str, FileState]] = [host_state.files_of(root, key) or {} for key in (b"one", b"two")]
    assert [list(files) for files in told] == [[str(root / "nginx.conf")]] * 2
    first, second = (files[str(root / "nginx.conf")] for files in told)
    assert first.digest != second.digest
    assert "workers" not in str(first)


def test_of_a_directory_with_too_much_or_with_strange_names_nothing_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_state.files_of(root / "missing", b"") == {}
    for bound in ("MAX_BYTES", "MAX_FILES"):
        with monkeypatch.context() as patched:
            patched.setattr(host_state, bound, 0)
            assert host_state.files_of(root, b"") is None
    assert len(host_state.files_of(root, b"") or {}) == 1
    (root / os.fsdecode(b"\xff")).touch()
    assert host_state.files_of(root, b"") is None
