"""Notifications over real HTTP and SMTP servers."""

from __future__ import annotations

import email
import email.policy
import html
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils import notifications
from ansible_collections.funnel.tornado.plugins.plugin_utils.notifications import (
    Notification,
    Notifier,
    notification_problems,
    parse_notifications,
)
from tests.support.webhook import Hooks

ABORTED = {"event": "failure", "subject": "aborted", "text": "aborted", "body": {"event": "failure", "text": "aborted"}}

#: A token that must not appear in output.
TOKEN = "t0ken"


class Mailbox(Message):
    """Records the mails that a real SMTP server gets."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[EmailMessage] = []

    def prepare_message(self, _session: object, envelope: Any) -> EmailMessage:
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        return mail

    def handle_message(self, message: Any) -> None:
        self.mails.append(message)


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    with Hooks() as server:
        yield server


@pytest.fixture
def mail_server() -> Iterator[Controller]:
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller
    controller.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def message(event: str) -> dict[str, Any]:
    return {"event": event, "subject": f"subject {event}", "text": f"text {event}", "body": {"event": event}}


def test_a_webhook_gets_the_events_in_order_with_its_headers(hooks: Hooks) -> None:
    url, headers = hooks.url("/chat"), {"Authorization": f"Bearer {TOKEN}"}
    notifier = Notifier([Notification(webhook=url, headers=headers)], ABORTED)
    for event in ("start", "undo", "failure"):
        notifier.send(message(event))
    assert notifier.close() == []
    assert hooks.events == ["start", "undo", "failure"]
    path, received, _body = hooks.received[0]
    assert (path, received["Authorization"], received["Content-Type"]) == ("/chat", f"Bearer {TOKEN}", "application/json")


def test_only_the_chosen_events_are_sent(hooks: Hooks) -> None:
    notifier = Notifier([Notification(webhook=hooks.url(), events=["failure"])], ABORTED)
    for event in ("start", "failure"):
        notifier.send(message(event))
    assert (notifier.close(), hooks.events) == ([], ["failure"])


def test_an_email_is_sent_with_apprise(mail_server: Controller) -> None:
    url = f"mailto://127.0.0.1:{mail_server.port}/?from=deploy@a.test&to=team@a.test&mode=insecure"
    notifier = Notifier(parse_notifications([{"apprise": url, "timeout": 30}]), ABORTED)
    notifier.send(message("success"))
    assert notifier.close() == []
    mailbox = mail_server.handler
    assert isinstance(mailbox, Mailbox)
    [mail] = mailbox.mails
    assert (mail["Subject"], "team@a.test" in mail["To"]) == ("subject success", True)
    text = mail.get_body(("plain", "html"))
    assert text
    assert "text success" in text.get_content()


def test_text_of_an_app_is_not_markup_in_an_email(mail_server: Controller) -> None:
    """A message quotes what a failing app answers or logs."""
    url = f"mailto://127.0.0.1:{mail_server.port}/?from=deploy@a.test&to=team@a.test&mode=insecure"
    notifier = Notifier(parse_notifications([{"apprise": url, "timeout": 30}]), ABORTED)
    quoted = 'GET / answered 500: <a href="http://evil.test/">log in</a>'
    notifier.send(message("failure") | {"text": f"{quoted}\nsecond line"})
    assert notifier.close() == []
    mailbox = mail_server.handler
    assert isinstance(mailbox, Mailbox)
    [mail] = mailbox.mails
    text = mail.get_body(("html", "plain"))
    assert text
    shown = text.get_content() if text.get_content_subtype() == "plain" else html.unescape(text.get_content())
    assert quoted in shown
    assert text.get_content_subtype() == "plain" or "<a " not in text.get_content()


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/500", "the server answered 500"), ("/302", "the server answered 302"), ("/hang", "no answer within 1 s")],
)
def test_a_failing_webhook_is_reported_without_its_url_and_does_not_delay_others(hooks: Hooks, path: str, problem: str) -> None:
    failing = Notification(webhook=hooks.url(f"{path}?{TOKEN}"), timeout=1)
    began = time.monotonic()
    notifier = Notifier([failing, Notification(webhook=hooks.url("/other"))], ABORTED)
    notifier.send(message("success"))
    problems = notifier.close()
    assert time.monotonic() - began < 8
    assert problems == [f"fleet_notifications[0]: cannot send the notification success: {problem}"]
    assert ("/other", "success") in [(at, body["event"]) for at, _headers, body in hooks.received]


def test_nothing_listens(hooks: Hooks) -> None:
    notifier = Notifier([Notification(webhook=f"http://127.0.0.1:{free_port()}/{TOKEN}")], ABORTED)
    notifier.send(message("success"))
    assert notifier.close() == ["fleet_notifications[0]: cannot send the notification success: Connection refused"]
    assert hooks.events == []


def test_a_killed_controller_is_reported(hooks: Hooks) -> None:
    program = (
        "import os, signal, sys\n"
        "from ansible_collections.funnel.tornado.plugins.plugin_utils.notifications import Notification, Notifier\n"
        f"notifier = Notifier([Notification(webhook={hooks.url()!r})], {ABORTED!r})\n"
        f"notifier.send({message('start')!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    collections = str(Path(notifications.__file__).parents[5])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([collections, *sys.path])}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=30)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 15
    while len(hooks.events) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hooks.events == ["start", "failure"]
    assert hooks.received[1][2]["text"] == "aborted"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("https://a.test", "fleet_notifications: must be"),
        ([{}], "fleet_notifications[0]: set exactly one of webhook, apprise; found none"),
        ([{"webhook": "https://a.test", "apprise": "slack://x"}], "found webhook and apprise"),
        ([{"webhook": f"ftp://a.test/{TOKEN}"}], "fleet_notifications[0].webhook: must be a URL; found (not shown)"),
        ([{"webhook": "https://a.test", "timeout": 100}], "fleet_notifications[0].timeout: must be"),
        ([{"webhook": "https://a.test", "events": ["end"]}], "fleet_notifications[0].events[0]: must be"),
        ([{"url": "https://a.test"}], "fleet_notifications[0].url: unknown key"),
        ([{"apprise": f"nonsense://{TOKEN}"}], "fleet_notifications[0].apprise: Apprise does not accept this URL"),
        ([{"apprise": "json://a.test", "headers": {"A": "b"}}], "fleet_notifications[0].headers: is for webhook only"),
    ],
)
def test_mistakes_are_reported_without_urls(entries: object, problem: str) -> None:
    problems = notification_problems(entries)
    assert problem in problems[0]
    assert TOKEN not in str(problems)


def test_a_missing_library_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InvalidDataError, match=r"fleet_notifications\[0\].apprise: .* -m pip install apprise"):
        parse_notifications([{"apprise": "slack://a/b/c"}])
    assert parse_notifications([{"webhook": "https://a.test"}])
