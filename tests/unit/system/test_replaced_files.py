"""Copies of the administrator's files that the collection replaces."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system.replaced_files import keep_copies, move_away

NEW = b"# Ansible managed\nb\n"


def test_a_file_of_the_administrator_is_copied_and_reported(tmp_path: Path) -> None:
    [message] = keep_copies({Path("/etc/x.conf"): (b"a\n", NEW)}, check_mode=False, directory=tmp_path / "copies")
    [copy] = (tmp_path / "copies/etc").iterdir()
    assert message == f"/etc/x.conf is replaced; its previous content is in {copy}"
    assert copy.read_bytes() == b"a\n"
    assert (copy.stat().st_mode & 0o777, (tmp_path / "copies").stat().st_mode & 0o777) == (0o600, 0o700)


def test_check_mode_copies_nothing(tmp_path: Path) -> None:
    assert len(keep_copies({Path("/etc/x.conf"): (b"a\n", NEW)}, check_mode=True, directory=tmp_path / "copies")) == 1
    assert not (tmp_path / "copies").exists()


def test_files_of_packages_are_not_reported_and_those_of_the_collection_not_copied(tmp_path: Path) -> None:
    adduser = Path("/etc/adduser.conf")
    replacements = {
        Path("/etc/x.conf"): (NEW, NEW + b"c"),
        Path("/etc/y"): (b"a", b"without a header"),
        adduser: (adduser.read_bytes(), NEW),
    }
    assert keep_copies(replacements, check_mode=False, directory=tmp_path / "copies") == []
    [copy] = (tmp_path / "copies/etc").iterdir()
    assert copy.read_bytes() == adduser.read_bytes()


def test_a_program_of_the_administrator_is_kept_with_its_mode(tmp_path: Path) -> None:
    program, link = tmp_path / "tool", tmp_path / "link"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link.symlink_to("tool")
    for path in (link, program):
        assert move_away(path, directory=tmp_path / "copies").startswith(f"{path} is replaced; the previous one is ")
    copies = {path.name.partition(".")[0]: path for path in (tmp_path / f"copies{tmp_path}").iterdir()}
    assert str(copies["link"].readlink()) == "tool"
    assert copies["tool"].stat().st_mode & 0o777 == 0o755
    assert not link.is_symlink()
