from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.plugin_utils.run_report import RunReport, host_ranges

OLD, NEW = "3f1c0a9be2d4", "8ab25d01c7e6"
WEB = tuple(f"web{number}" for number in range(1, 51))


def report(operation: str = "deploy", hosts: Sequence[str] = WEB, **options: Any) -> RunReport:
    return RunReport(operation, "ann@desk", apps=["shop", "blog"], hosts=hosts, **options)


def built(**changes: Any) -> dict[str, Any]:
    return {"id": NEW, "live": OLD, "settled": False, "waiting": False, "reasons": ["code", "env.COLOR"]} | changes


def switched(seconds: float = 2, **changes: Any) -> dict[str, Any]:
    steps = [{"name": "start", "seconds": 0.5}, {"name": "drain", "seconds": seconds - 0.5}]
    return {"before": OLD, "release": NEW, "changed": True, "steps": steps} | changes


def failed(message: str, **changes: Any) -> dict[str, Any]:
    return {"before": OLD, "release": OLD, "changed": False, "failed": True, "msg": message} | changes


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (WEB, "web1-web50"),
        (("web2", "web1"), "web1, web2"),
        (("web9", "web10", "web11"), "web9-web11"),
        (("web08", "web09", "web10", "web12"), "web08-web10, web12"),
        (("web8", "web09", "web10"), "web8, web09, web10"),
        (("web1.a.test", "web2.a.test", "web3.a.test", "db.a.test"), "db.a.test, web1.a.test-web3.a.test"),
        (("10.0.0.9", "10.0.0.10", "10.0.0.11"), "10.0.0.9-10.0.0.11"),
        (("shop",), "shop"),
        ((), ""),
    ],
)
def test_consecutive_hosts_are_a_range(hosts: Sequence[str], expected: str) -> None:
    assert host_ranges(hosts) == expected


def test_first_release_and_its_verification_are_one_row() -> None:
    run = report(hosts=["web1"])
    for app in ("shop", "blog"):
        run.add_release("web1", app, built(live="", reasons=["first release"]))
    run.add_switches("web1", {app: switched(2, before="", deferred=True) for app in ("shop", "blog")})
    run.add_switches("web1", {"shop": switched(3, before=NEW), "blog": failed("no", before=NEW, release="", undone=True)})
    rows = {row.app: row for row in run.rows()}
    assert (rows["shop"].before, rows["shop"].after, rows["shop"].seconds, rows["shop"].result) == ("", NEW, 5, "deployed")
    assert (rows["blog"].before, rows["blog"].after, rows["blog"].result) == ("", NEW, "undone")


def test_equal_changes_of_hosts_are_one_row() -> None:
    run = report()
    for number, host in enumerate(WEB):
        run.add_release(host, "shop", built())
        run.add_release(host, "blog", built(settled=True, id=OLD, reasons=[]))
        run.add_switches(host, {"shop": switched(2 + number / 10)})
        run.add_service(host, "nginx", "reload", ["/etc/nginx/funnel/app.shop.conf"])
        run.add_service(host, "nginx", "")
    table = run.table()
    assert table[0].split() == ["APP", "HOSTS", "FROM", "TO", "WHY", "RELOADS", "TIME", "RESULT"]
    assert re.split(" {2,}", table[1]) == ["shop", "web1-web50", OLD, NEW, "code, env.COLOR", "nginx", "6.9 s", "deployed"]
    assert table[2] == "up to date: blog on web1-web50"
    assert table[3].startswith("deploy of shop, blog on web1-web50 by ann@desk: complete, ")
    assert len(table) == 4


def test_check_mode_predicts() -> None:
    run = report(hosts=["web1"], check=True)
    run.add_release("web1", "shop", built(id=""))
    run.add_release("web1", "blog", built(live="", reasons=["first release"]))
    run.add_switches("web1", {"shop": switched(release="", steps=[])})
    run.add_service("web1", "nginx", "reload", [f"/etc/nginx/funnel/app.{name}.conf" for name in ("shop", "blog")])
    assert [row.cells for row in run.rows()] == [
        ["shop", "web1", OLD, "-", "code, env.COLOR", "nginx", "-", "would be deployed"],
        ["blog", "web1", "-", NEW, "first release", "nginx", "-", "would be deployed"],
    ]
    assert run.table()[-1].endswith(": would change, 0.0 s")


def test_a_run_without_changes_says_so() -> None:
    run = report(hosts=["web1"])
    run.add_release("web1", "shop", built(settled=True))
    run.add_release("web1", "blog", built(waiting=True, id="", live=""))
    assert run.table() == ["up to date: shop, blog on web1", "deploy of shop, blog on web1 by ann@desk: nothing to change, 0.0 s"]


def test_changed_configuration_without_a_release_is_a_row() -> None:
    run = report("site")
    run.add_release("web1", "shop", built(settled=True))
    for host in ("web1", "lb1", "lb2"):
        run.add_service(host, "nginx" if host == "web1" else "haproxy", "reload")
    assert [row.cells for row in run.rows()] == [
        ["-", "web1", "-", "-", "configuration", "nginx", "-", "changed"],
        ["-", "lb1, lb2", "-", "-", "configuration", "haproxy", "-", "changed"],
    ]


def test_a_change_without_a_service_is_reported() -> None:
    run = report("site")
    run.add_change("web1")
    assert [(row.hosts, row.reasons, row.result) for row in run.rows()] == [(("web1",), ("configuration",), "changed")]


def test_services_are_reported_for_the_app_whose_site_changed() -> None:
    run = report(hosts=["web1"])
    for app in ("shop", "blog", "wiki"):
        run.add_release("web1", app, built(settled=app == "wiki"))
    run.add_switches("web1", {"shop": switched(), "blog": switched()})
    run.add_service("web1", "nginx", "reload", ["/etc/nginx/funnel/app.shop.conf", "/etc/nginx/sites-enabled/app.wiki.conf"])
    run.add_service("web1", "supervisor", "restart", ["/etc/supervisor/supervisord.conf"])
    assert [(row.app, row.reloads) for row in run.rows()] == [("shop", ("nginx",)), ("blog", ()), ("", ("nginx", "supervisor"))]


def test_failures_show_what_was_tried_and_why_it_failed() -> None:
    run = report(hosts=WEB[:4])
    for host in WEB[:4]:
        run.add_release(host, "shop", built())
    run.add_switches("web1", {"shop": switched()})
    run.add_switches("web2", {"shop": failed("shop: was live for 2 s:\nlog", undone=True)})
    run.add_switches("web3", {"shop": failed("shop: did not go live")})
    run.add_unreachable("web4")
    run.add_release("web1", "blog", {"failed": True, "msg": "tornado_apps.blog: no disk"})
    run.failed = True
    assert [(row.app, row.hosts, row.after, row.result) for row in run.rows()] == [
        ("shop", ("web1",), NEW, "deployed"),
        ("shop", ("web2",), NEW, "undone"),
        ("shop", ("web3",), NEW, "failed"),
        ("shop", ("web4",), NEW, "unreachable"),
        ("blog", ("web1",), "", "failed"),
    ]
    assert run.table()[6:-1] == [
        "  shop, web2: shop: was live for 2 s: log",
        "  shop, web3: shop: did not go live",
        "  blog, web1: tornado_apps.blog: no disk",
        "unreachable: web4",
    ]
    assert ": failed, " in run.table()[-1]


def test_a_run_that_ends_before_the_switch_says_so() -> None:
    run = report(hosts=WEB[:2])
    run.add_release("web1", "shop", built())
    run.add_release("web2", "shop", {"failed": True, "msg": "no disk"})
    assert [row.result for row in run.rows()] == ["not switched", "failed"]


def test_rollback_and_restart_are_their_own_reason() -> None:
    rows = []
    for operation in ("rollback", "restart"):
        run = report(operation)
        run.add_switches("web1", {"shop": switched()})
        rows += [row.cells for row in run.rows()]
    assert [cells[4] for cells in rows] == ["rollback", "restart"]
    assert [cells[7] for cells in rows] == ["rolled back", "restarted"]


@pytest.mark.parametrize(
    ("run", "event"),
    [
        (report(), "success"),
        (report("rollback"), "rollback"),
        (report("rollback", failed=True), "failure"),
        (report("site", failed=True), "failure"),
    ],
)
def test_the_last_event_is_the_outcome(run: RunReport, event: str) -> None:
    assert run.outcome == event


def test_the_body_of_a_webhook_has_who_what_where_and_how_long() -> None:
    run = report(hosts=["web1"])
    run.add_release("web1", "shop", built())
    run.add_switches("web1", {"shop": switched()})
    run.began -= 9
    body = run.message("success")["body"]
    assert body.pop("started").endswith("Z")
    assert body.pop("seconds") == pytest.approx(9, abs=0.5)
    assert body.pop("text").splitlines() == [
        "deploy of shop, blog on web1 by ann@desk: complete, 9.0 s",
        f"shop on web1: deployed, {OLD} to {NEW} (code, env.COLOR)",
    ]
    assert body == {
        "event": "success",
        "operation": "deploy",
        "by": "ann@desk",
        "apps": ["shop", "blog"],
        "hosts": ["web1"],
        "changes": [
            {
                "app": "shop",
                "hosts": ("web1",),
                "from": OLD,
                "to": NEW,
                "reasons": ("code", "env.COLOR"),
                "reloads": (),
                "result": "deployed",
                "seconds": 2.0,
                "message": "",
            }
        ],
        "errors": {},
    }


def test_message_of_an_app_has_no_links_or_mentions_in_chats() -> None:
    quoted = "it answered [log in](http://evil.test) <http://evil.test|log in> <!channel> <@U1> @everyone <a href='x'>"
    run = report(hosts=["web1"], failed=True)
    run.add_switches("web1", {"shop": failed(quoted)})
    run.add_failure("web2", quoted)
    message = run.message("failure")
    for line in message["text"].splitlines()[1:]:
        assert not re.search(r"\]\(|<[!@ah]|@\w", line), "markup of Markdown, Slack, Discord, Mattermost, HTML"
        assert line.replace("\u200b", "").endswith(quoted), "the text is displayed unchanged"
    assert message["subject"].startswith("deploy of shop, blog on web1 by ann@desk"), "that is the operator's"
    assert message["body"]["changes"][0]["message"] == message["body"]["errors"]["web2"] == quoted, "data are not text"


def test_messages_of_other_events() -> None:
    run = report(hosts=["web1", "web2"])
    assert run.message("start")["text"] == "deploy of shop, blog on web1, web2 by ann@desk: started"
    interrupted = run.message("failure", interrupted=True)
    assert interrupted["text"].endswith("by ann@desk: interrupted, because it was canceled, or its process was killed")
    assert interrupted["body"]["seconds"] is None
    run.add_release("web1", "shop", built())
    run.add_switches("web1", {"shop": failed("shop: was live for 2 s", undone=True)})
    assert run.message("undo")["text"].splitlines() == [
        "deploy of shop on web1, web2 by ann@desk: the new release was live, and was rolled back automatically",
        "shop on web1: undone: shop: was live for 2 s",
    ]
    run.add_failure("web1", "shop failed; the other apps are complete\n  more")
    run.add_failure("web1", "a later error")
    run.add_unreachable("web2")
    assert run.message("failure")["body"]["errors"] == {
        "web1": "shop failed; the other apps are complete",
        "web2": "is unreachable",
    }
