from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.plugin_utils.app_selection import select

APPS = ["shop", "blog", "wiki"]


@pytest.mark.parametrize(
    ("named", "options", "names"),
    [
        ("shop", {}, ["shop"]),
        (" shop, blog,,shop ", {}, ["shop", "blog"]),
        ("", {"default": APPS}, APPS),
        (None, {"default": ["shop"]}, ["shop"]),
    ],
)
def test_named_apps_or_the_default_are_selected(named: object, options: dict[str, Any], names: list[str]) -> None:
    assert select(named, APPS, **options).names == names


def test_the_only_app_need_not_be_named() -> None:
    assert select("", ["shop", "shop"]).names == ["shop"]


@pytest.mark.parametrize(
    ("named", "single", "problem"),
    [
        ("shpo,blog", False, "tornado_apps: no such app shpo; did you mean shop?"),
        ("zzz", False, "tornado_apps: no such app zzz; there are shop, blog, wiki"),
        ("", False, "app: name apps with -e app=NAME; there are shop, blog, wiki"),
        ("", True, "app: name the app with -e app=NAME; there are shop, blog, wiki"),
        ("shop,blog", True, "app: must name a single app for this playbook; found shop, blog"),
    ],
)
def test_unknown_ambiguous_or_missing_names_are_a_problem(named: str, *, single: bool, problem: str) -> None:
    selection = select(named, APPS, single=single)
    assert (selection.names, selection.problem) == ([], problem)
