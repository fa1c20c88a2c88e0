"""The checks of `make chaos` find violations, and a step is drawn in the same way in each replay."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos import checks, clients
from tests.chaos.__main__ import parse_steps, shortened
from tests.chaos.operations import MAIN, Operation, Operator


def drawn(directory: Path, count: int = 40) -> list[Operation]:
    """Draw and perform operations without a host."""
    operator = Operator(directory, 0)
    operations = [operator.first()]
    operations[0].on_success()
    for number in range(count):
        operations.append(operator.draw(Random(f"1.{number}")))
        if operations[-1].name != "rollback":
            operations[-1].on_success()
    return operations


def test_replay_draws_the_same_operations(tmp_path: Path) -> None:
    first, second = drawn(tmp_path / "first"), drawn(tmp_path / "second")
    assert [(found.name, found.outcome, str(found.command)) for found in first] == [
        (found.name, found.outcome, str(found.command)) for found in second
    ]
    assert len({found.name.partition(" ")[0] for found in first}) > 5


def test_operation_keeps_the_other_app_in_the_desired_state(tmp_path: Path) -> None:
    assert all(MAIN in operation.command.apps for operation in drawn(tmp_path))


def test_new_releases_have_different_marks(tmp_path: Path) -> None:
    operator = Operator(tmp_path, 7)
    marks = [operator.change(operator.apps[MAIN], "code", "site.yml", code=code).outcome[MAIN] for code in (True, False, True)]
    assert len(set(marks)) == len(marks)
    assert '"mark": "8."' in (tmp_path / "code-8/sample_app/web.py").read_text()


@pytest.mark.parametrize(
    ("acknowledged", "stored", "problems"),
    [
        (["a", "b"], "b\na\n", 0),
        (["a"], "a\nunacknowledged\n", 0),
        (["a", "b"], "a\n", 1),
        (["a"], "a\na\n", 1),
        ([], "unacknowledged\nunacknowledged\n", 1),
        (["lost"], "a\na\n", 2),
    ],
)
def test_lost_and_duplicated_posts_are_found(acknowledged: list[str], stored: str, problems: int) -> None:
    assert len(clients.compare(acknowledged, stored)) == problems


@pytest.mark.parametrize(
    ("failure", "reloads", "kind"),
    [
        ((100.0, 1.0, "status 502"), False, "violation"),
        ((100.0, 1.0, "status 502"), True, "violation"),
        ((100.0, 1.0, clients.CLOSED), True, "closed"),
        ((100.0, 1.0, clients.CLOSED), False, "violation"),
        ((209.0, 0.1, "status 502"), True, "fault"),
        ((199.0, 2.0, "status 502"), False, "fault"),
        ((215.0, 0.1, "status 502"), False, "violation"),
    ],
)
def test_failures_are_classified(failure: tuple[float, float, str], kind: str, *, reloads: bool) -> None:
    source: Any = SimpleNamespace(new_failures=lambda: [failure])
    found = checks.classify(cast(clients.Clients, source), [(200.0, 210.0)], reloads=reloads)
    assert [name for name, reasons in found.items() if reasons] == [kind]


def test_steps_are_parsed_and_shortened() -> None:
    assert parse_steps("3,5-7") == [3, 5, 6, 7]
    assert list(shortened([1, 2, 3])) == [[3], [2, 3]]
