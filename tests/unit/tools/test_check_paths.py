"""The check of how root's code reaches what an app's user can change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_paths import ROOT, knows_apps, main, problems


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
def test_functions_that_follow_links_or_recurse_are_refused(line: str) -> None:
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
    ],
)
def test_access_by_a_path_to_what_a_user_may_write_is_refused(line: str) -> None:
    assert list(problems(line))
    assert list(problems(f"def use(layout):\n    {line}"))


def test_a_path_is_known_by_the_variable_that_it_was_given_to() -> None:
    code = "def use(layout, slot):\n    run = layout.run(slot)\n    file = run / 'x'\n    return file.read_text()"
    assert [line for line, _text in problems(code)] == [4]
    assert not list(problems("def use(run):\n    file = run / 'x'\n    return file.read_text()"))


@pytest.mark.parametrize(
    "line",
    [
        "tree.read(layout.starts(slot, 0), 100, trusted=layout.slot(slot))",
        "layout.run(slot).mkdir(mode=0o700)",  # its parent is root's
        "layout.release(release).exists()",
        "layout.socket(slot, 0).name",
        "layout.socket(slot, 0).relative_to(layout.home)",
        "os.fchmod(descriptor, 0o600)",
        "print(layout.shared / 'file')",
    ],
)
def test_what_reaches_nothing_of_a_user_s_by_a_path_is_accepted(line: str) -> None:
    assert not list(problems(line))


def test_code_is_looked_at_that_knows_where_apps_lie() -> None:
    assert knows_apps("from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout")
    assert not knows_apps("from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE")


def test_the_collection_is_accepted_and_a_file_that_is_not_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bad = tmp_path / "bad.py"
    bad.write_text("import shutil\nshutil.rmtree('/srv/shop/shared')\n")
    assert main([str(bad)]) == 1
    assert f"{bad}:2: shutil.rmtree" in capsys.readouterr().err
    assert knows_apps((ROOT / "plugins/module_utils/deploy/process_group.py").read_text())
