from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module


def double(number: int) -> int:
    return 2 * number


def test_function_is_registered_by_its_name() -> None:
    assert filter_module(double)().filters() == {"double": double}
