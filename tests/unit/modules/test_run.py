from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.modules.run import secrets, split_command


def test_commands_are_split_into_words() -> None:
    assert split_command("sh -c 'echo \"$HOME\" | wc'  a\\ b") == ["sh", "-c", 'echo "$HOME" | wc', "a b"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "command: must be a program and its arguments; found ''"),
        ("  ", "command: must be a program and its arguments; found '  '"),
        ("echo 'a", 'command: no closing quotation; found "echo \'a"'),
    ],
)
def test_invalid_commands_are_rejected(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        split_command(command)


def test_secrets_are_masked_except_short_ones(tmp_path: Path) -> None:
    layout = Layout("shop", tmp_path)
    layout.release("1f2e").mkdir(parents=True)
    (layout.release("1f2e") / "secrets.json").write_text(json.dumps({"KEY": "not-for-others", "LEVEL": "1"}))
    assert secrets(layout, "1f2e") == {"not-for-others"}
