"""Notifications about a run: their configuration, ``fleet_notifications``, and the process that sends them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    Doc,
    Hidden,
    InvalidDataError,
    Pattern,
    Range,
    parse,
)

VARIABLE = "fleet_notifications"

SENDER = Path(__file__).with_name("notification_sender.py")

#: Seconds beyond the timeouts until a sender that does not end is killed.
MARGIN = 3

Event = Literal["start", "success", "failure", "undo", "rollback"]


@dataclass(frozen=True)
class Notification:
    """An entry of ``fleet_notifications``."""

    EXACTLY_ONE: ClassVar = ("webhook", "apprise")

    webhook: Annotated[
        str | None, Doc("URL that gets a POST request with a JSON body."), Pattern(r"https?://[^\s/]\S*", "a URL"), Hidden
    ] = None
    apprise: Annotated[
        str | None, Doc("URL of a chat or e-mail in the notation of Apprise."), Pattern(r"\w+://\S+", "a URL"), Hidden
    ] = None
    headers: Annotated[dict[str, str], Doc("Headers of the request to C(webhook), such as C(Authorization)."), Hidden] = field(
        default_factory=dict
    )
    events: Annotated[list[Event] | None, Doc("Events to notify about; all if unset.")] = None
    timeout: Annotated[int, Doc("Seconds to wait for an answer."), Range(1, 60)] = 10


def parse_notifications(data: object) -> list[Notification]:
    """Return the entries of ``fleet_notifications``.

    :raises InvalidDataError: with all mistakes, without the URLs, which may contain tokens.
    """
    entries = parse(list[Notification], data, VARIABLE)
    problems = [
        f"{VARIABLE}[{i}].headers: is for webhook only" for i, each in enumerate(entries) if each.apprise and each.headers
    ]
    urls = {f"{VARIABLE}[{i}].apprise": entry.apprise for i, entry in enumerate(entries) if entry.apprise}
    if problems or not urls:
        _raise(problems)
        return entries
    if importlib.util.find_spec("apprise") is None:
        _raise(
            [f"{', '.join(urls)}: the controller lacks the Python package apprise; run {sys.executable} -m pip install apprise"]
        )
    apprise = importlib.import_module("apprise")
    _raise(
        [
            f"{key}: Apprise does not accept this URL (not shown); see https://appriseit.com/services/"
            for key, url in urls.items()
            if apprise.Apprise.instantiate(url, suppress_exceptions=True) is None
        ]
    )
    return entries


def notification_problems(data: object) -> list[str]:
    """Return the mistakes in ``fleet_notifications``."""
    try:
        parse_notifications(data)
    except InvalidDataError as error:
        return error.problems
    return []


def _raise(problems: list[str]) -> None:
    if problems:
        raise InvalidDataError(problems)


class Notifier:
    """Sends notifications from a process of its own, so that a slow or missing answer does not hold up the run.

    The process gets the URLs on its standard input, in order that no other user sees them. If the controller is killed, the
    input ends early, and the process sends ``aborted``.
    """

    def __init__(self, notifications: Sequence[Notification], aborted: Mapping[str, Any]) -> None:
        """Start the process; it notifies about nothing yet."""
        self._patience = max(notification.timeout for notification in notifications) + MARGIN
        # Its own session, so that Ctrl-C and the end of a terminal do not end it. -P: no other file here shadows a library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SENDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        self._write({"notifications": [asdict(notification) for notification in notifications], "aborted": aborted})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message with ``event``, ``subject``, ``text`` and ``body``, without waiting."""
        self._write(message)

    def close(self) -> list[str]:
        """Wait until all messages are sent, at most as long as the timeout; return which could not be sent, and why."""
        self._write({"end": True})
        try:
            output = self._process.communicate(timeout=self._patience)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            output = self._process.communicate()[0]
            return [*output.splitlines(), f"{VARIABLE}: some notifications may not have been sent within {self._patience} s"]
        if self._process.returncode:
            return [*output.splitlines(), f"{VARIABLE}: the process that sends them failed"]
        return output.splitlines()

    def _write(self, message: Mapping[str, Any]) -> None:
        """Pass a message to the process; one that ended is reported by `close`."""
        stream = self._process.stdin
        if stream:
            with suppress(BrokenPipeError):
                stream.write(json.dumps(message) + "\n")
                stream.flush()
