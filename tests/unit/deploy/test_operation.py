"""Operations that are refused before they change anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import operation as operation_module
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.operation import Operation, perform, perform_all


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return an app with the live release r1, to which an operator rolled back from r2."""
    layout = Layout("shop", base=tmp_path)
    for release in ("r1", "r2", "r3"):
        layout.release(release).mkdir(parents=True)
        layout.manifest(release).write_text(ReleaseManifest("shop", release, f"revision of {release}").to_json())
    layout.slot("a").mkdir(parents=True)
    layout.live.symlink_to("slots/a")
    (layout.slot("a") / "release").symlink_to("../../releases/r1")
    for release in ("r1", "r2"):
        history.record(layout, release, f"revision of {release}", "alice@desk")
    history.mark_undone(layout, "r2", "rolled back", "bob@desk")
    return layout


def test_a_deploy_that_was_built_before_a_rollback_does_not_override_it(layout: Layout) -> None:
    result = perform(Operation(by="alice@desk", replaced={"shop": "r2"}), layout, "r3")
    assert (result["failed"], result["release"]) == (True, "r1")
    assert result["msg"].startswith("shop: release r2, which this deploy was to replace, was rolled back at 20")
    assert result["msg"].endswith(" by bob@desk; run it again to deploy nevertheless")


def test_a_rollback_without_a_release_that_served_well_is_refused(layout: Layout) -> None:
    result = perform(Operation(rollback=True), layout, "previous")
    assert result["msg"] == f"shop: this host has no earlier release that served well; {layout.history} lists all"
    assert history.latest(layout) == "r1"


@pytest.mark.parametrize(
    ("release", "message"),
    [("r4", "shop: release r4 is not on this host; deploy its version again"), ("", "shop: release  is not")],
)
def test_a_release_that_is_not_on_the_host_is_refused(layout: Layout, release: str, message: str) -> None:
    assert perform(Operation(rollback=True), layout, release)["msg"].startswith(message)


def test_an_app_that_is_not_on_the_host_is_refused(tmp_path: Path) -> None:
    for release in ("live", "previous", "r1"):
        assert (
            perform(Operation(restart=True), Layout("shop", tmp_path), release)["msg"] == "shop: no release is live on this host"
        )


def test_apps_are_switched_after_those_on_which_they_depend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def switch(_operation: Operation, layout: Layout, _release: str) -> dict[str, object]:
        with log.open("a") as file:
            file.write(f"{layout.app}\n")
        return {"failed": layout.app == "stock"}

    monkeypatch.setattr("ansible_collections.funnel.tornado.plugins.module_utils.deploy.operation.perform", switch)
    depends_on = {
        "shop": ["accounts"],
        "accounts": ["mail", "absent"],
        "orders": ["stock"],
        "returns": ["orders"],
        "blog": ["wiki"],
    }
    apps = ["shop", "returns", "orders", "stock", "accounts", "mail", "blog"]
    results = perform_all(Operation(depends_on=depends_on, failed=["wiki"]), dict.fromkeys(apps, "r1"))
    assert list(results) == apps
    assert {app: result["msg"] for app, result in results.items() if "msg" in result} == {
        "orders": "tornado_apps.orders: not switched, because it depends on stock, which failed",
        "returns": "tornado_apps.returns: not switched, because it depends on orders, which failed",
        "blog": "tornado_apps.blog: not switched, because it depends on wiki, which failed",
    }
    switched = log.read_text().split()
    assert sorted(switched) == ["accounts", "mail", "shop", "stock"]
    assert switched.index("mail") < switched.index("accounts") < switched.index("shop")


@pytest.mark.parametrize(
    ("operation", "release", "preempt"),
    [
        (Operation(rollback=True), "r2", "rollback"),
        (Operation(rollback=True), "previous", "rollback"),
        (Operation(rollback=True), "live", ""),  # the drain after a rollback
        (Operation(rollback=True, preempt=True), "live", "rollback"),
        (Operation(), "r2", ""),
        (Operation(preempt=True), "r2", "deploy"),
    ],
)
def test_only_a_rollback_to_another_release_preempts_a_deploy_unasked(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, operation: Operation, release: str, preempt: str
) -> None:
    requests = []

    def refuse(*_args: object, **options: object) -> object:
        requests.append(options["preempt"])
        raise LockedError

    monkeypatch.setattr(operation_module, "deploy_lock", refuse)
    perform(operation, layout, release)
    assert requests == [preempt]


@pytest.mark.parametrize(("target", "has_slot", "draining"), [("r1", True, True), ("r1", False, False), ("r3", True, False)])
def test_a_failed_rollback_is_drained_if_its_target_is_live(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, target: str, *, has_slot: bool, draining: bool
) -> None:
    if has_slot:
        layout.slot("b").mkdir()

    def refuse(*_args: object, **_options: object) -> object:
        raise LockedError

    monkeypatch.setattr(operation_module, "deploy_lock", refuse)
    assert perform(Operation(rollback=True), layout, target)["draining"] == draining
