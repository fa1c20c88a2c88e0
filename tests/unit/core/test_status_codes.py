from __future__ import annotations

import re

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.status_codes import DEFAULT, accepts, prefixes


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (DEFAULT, ["2", "3"]),
        (["200", "401"], ["200", "401"]),
        (["200-299", "204", "250-301"], ["2", "300", "301"]),
        (["308-411"], ["308", "309", *(f"3{ten}" for ten in range(1, 10)), "40", "410", "411"]),
    ],
)
def test_prefixes_match_exactly_the_accepted_codes(accepted: list[str], expected: list[str]) -> None:
    assert prefixes(accepted) == sorted(expected)
    for status in range(100, 600):
        assert accepts(accepted, status) == bool(re.match("|".join(expected), str(status))), status
