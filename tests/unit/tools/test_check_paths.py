"""Static check of access to files that an app's user can write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import check_paths
from tools.check_paths import ROOT, collection_files, imports_layout, main, problems


@pytest.mark.parametrize(
    "line",
    [
        "shutil.rmtree(path)",
        "shutil.chown(path, user)",
        "from shutil import copytree",
        "for root, names, files in os.walk(path): pass",
        "os.chown(path, uid, gid, follow_symlinks=False)",
        "os.chmod(path, 0o644)",
        "path.chmod(0o644)",
        "list(path.rglob('*'))",
    ],
)
def test_functions_that_follow_links_or_recurse_are_forbidden(line: str) -> None:
    assert list(problems(line))


@pytest.mark.parametrize(
    "line",
    [
        "layout.socket(slot, 0).exists()",
        "self.layout.starts(slot, 0).read_text()",
        "(layout.run(slot) / name).open()",
        "open(layout.shared / 'file')",
        "open(f'{layout.shared}/file')",
        "open(str(layout.starts(slot, 0)))",
        "os.stat(layout.socket(slot, 0))",
        "os.path.exists(Path(layout.cache, 'uv'))",
        "layout.run(slot).glob('*.sock')",
        "list(self.layout.shared.iterdir())",
        "layout.run(slot).joinpath('0.pid').unlink()",
        "layout.socket(slot, 0).with_suffix('.pid').write_text('1')",
        "layout.socket(slot, 0).with_name('1.sock').unlink()",
    ],
)
def test_access_by_path_to_files_in_a_writable_directory_is_forbidden(line: str) -> None:
    assert list(problems(line))
    assert list(problems(f"def use(layout):\n    {line}"))


def test_paths_are_tracked_through_variables() -> None:
    code = "def use(layout, slot):\n    run = layout.run(slot)\n    file = run / 'x'\n    return file.read_text()"
    assert [line for line, _text in problems(code)] == [4]
    assert not list(problems("def use(run):\n    file = run / 'x'\n    return file.read_text()"))


@pytest.mark.parametrize(
    "line",
    [
        "tree.read(layout.starts(slot, 0), 100, trusted=layout.slot(slot))",
        "layout.run(slot).mkdir(mode=0o700)",  # its parent is owned by root
        "layout.release(release).exists()",
        "layout.shared.with_name('other').exists()",  # beside the directory
        "layout.socket(slot, 0).name",
        "layout.socket(slot, 0).relative_to(layout.home)",
        "os.fchmod(descriptor, 0o600)",
        "print(layout.shared / 'file')",
    ],
)
def test_other_uses_of_a_path_are_allowed(line: str) -> None:
    assert not list(problems(line))


UNFINISHED = {"source"}


@pytest.mark.parametrize(
    "code",
    [
        "(source / 'setup.py').read_text()",
        "open(source / name)",
        "os.stat(f'{source}/x')",
        "list(source.iterdir())",
        "(work / 'src' / 'x').exists()",
        "(layout.releases / id / 'package').glob('*')",
        "(source / 'src').is_dir()",
        "with as_user(user):\n        file = source / 'x'\n    file.read_text()",
        "with other(user):\n        (source / 'x').unlink()",
        "(source / 'x').unlink()\n    builder.take_ownership(source, key)",
    ],
)
def test_unfinished_builds_are_not_accessed_by_path(code: str) -> None:
    assert list(problems(f"def build(source):\n    {code}", UNFINISHED))


@pytest.mark.parametrize(
    "code",
    [
        "with as_user(layout.builder):\n        (source / 'x').read_text()",
        "with lock, as_user(layout.builder):\n        open(source / 'x')",
        "Builder(layout).take_ownership(source, key)\n    (source / 'x').write_text('')",
        "tree.read(source / 'x', 100, trusted=source)",
        "source.with_name('archive').unlink()",
        "source.is_symlink()",
        "(work / 'venv').symlink_to('x')",
    ],
)
def test_unfinished_builds_are_accessed_as_the_builder_or_after_their_copy(code: str) -> None:
    assert not list(problems(f"def build(source):\n    {code}", UNFINISHED))


def test_ownership_counts_only_in_the_function_that_took_it() -> None:
    code = "def build(source):\n    take_ownership(source)\n\ndef use(source):\n    (source / 'x').unlink()"
    assert [line for line, _text in problems(code, UNFINISHED)] == [5]


def test_modules_that_build_are_checked_for_unfinished_builds() -> None:
    for name, variables in check_paths.UNFINISHED.items():
        code = (ROOT / name).read_text()
        for variable in variables:
            assert re.search(rf"\b{variable}: Path", code) or f" {variable} = " in code, (name, variable)
        bad = f"{code}\n\ndef bad(source):\n    return (source / 'x').read_text()\n"
        assert [text for _line, text in problems(bad, variables)] == ["(source / 'x').read_text()"]


def test_only_modules_that_import_layout_are_checked() -> None:
    assert imports_layout("from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout")
    assert not imports_layout("from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE")


def test_the_collection_passes_and_violations_are_reported_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    bad = tmp_path / "bad.py"
    bad.write_text("import shutil\nshutil.rmtree('/srv/shop/shared')\n")
    assert main([str(bad)]) == 1
    assert f"{bad}:2: shutil.rmtree" in capsys.readouterr().err
    process_group = ROOT / "plugins/module_utils/deploy/process_group.py"
    assert process_group in collection_files()
    assert imports_layout(process_group.read_text())
