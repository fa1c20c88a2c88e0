from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import private


def test_a_private_file_has_mode_0600_and_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "file"
    private.write(file, "a longer text")
    private.write(file, "text")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("text", 0o600)


def test_a_private_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    for name in ("link", ".link.new"):
        (tmp_path / name).symlink_to("elsewhere")
    private.write(tmp_path / "link", "text")
    assert (tmp_path / "link").read_text() == "text"
    assert not (tmp_path / "elsewhere").exists()


def test_a_private_file_stays_if_its_new_content_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    private.write(file, "text")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="File too large"):
            private.write(file, "x" * 1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (file.read_text(), [*tmp_path.iterdir()]) == ("text", [file])


def test_owner_and_mode_are_not_set_through_links(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name, mode in (("directory", 0o3777), ("file", 0o640)):
        private.set_owner(tmp_path / name, os.getuid(), os.getgid(), mode)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    with pytest.raises(OSError, match="symbolic links"):
        private.set_owner(tmp_path / "link", os.getuid(), os.getgid(), 0o777)


def test_an_acl_grants_a_user_the_permissions_of_the_group() -> None:
    words = ["02000000", "01000700ffffffff", "02000100e8030000", "04000100ffffffff", "10000100ffffffff", "20000000ffffffff"]
    assert private.acl(0o710, 1000).hex() == "".join(words)


@pytest.mark.parametrize(
    ("links", "names"), [("00", "fs.protected_symlinks=1 fs.protected_hardlinks=1"), ("01", "fs.protected_symlinks=1")]
)
def test_disabled_link_protection_is_reported_with_a_remedy(tmp_path: Path, links: str, names: str) -> None:
    for setting, value in zip(private.LINK_PROTECTION, links, strict=True):
        (tmp_path / setting).write_text(f"{value}\n")
    assert f"set {names} with sysctl -w" in private.link_protection_problem(tmp_path)


def test_enabled_link_protection_is_accepted(tmp_path: Path) -> None:
    for setting in private.LINK_PROTECTION:
        (tmp_path / setting).write_text("1\n")
    assert private.link_protection_problem(tmp_path) == ""
