"""Results of modules that did not start."""

from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import needs_terminal


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ("sudo: sorry, you must have a tty to run sudo\n", True),
        ("hello\nsudo: Sie müssen ein TTY haben, um sudo zu verwenden\n", True),
        ("sudo: a password is required\n", False),
        ("Traceback ... pretty", False),
    ],
)
def test_a_refusal_of_sudo_is_recognized(errors: str, *, expected: bool) -> None:
    assert needs_terminal({"failed": True, "module_stderr": errors}) is expected
    assert not needs_terminal({"failed": False, "module_stderr": errors})
