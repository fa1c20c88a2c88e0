from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout("shop", base=tmp_path)
    for slot in ("a", "b"):
        layout.slot(slot).mkdir(parents=True)
    return layout


def test_before_the_first_switch_no_slot_is_live_and_slot_a_is_next(layout: Layout) -> None:
    assert (layout.live_slot(), layout.inactive_slot(), layout.slot_release("a")) == (None, "a", None)


def test_the_link_selects_the_live_slot_and_the_other_one_is_next(layout: Layout) -> None:
    layout.live.symlink_to("slots/a")
    (layout.slot("a") / "release").symlink_to("../../releases/1f2e")
    assert (layout.live_slot(), layout.inactive_slot(), layout.slot_release("a")) == ("a", "b", "1f2e")


def test_the_longest_socket_path_fits_into_108_bytes() -> None:
    assert len(str(Layout("a" * 31).live / "run/255.sock")) < 108
