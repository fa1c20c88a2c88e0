"""Program that sends notifications: reads messages as JSON from its input, a line each, and prints those that it cannot send.

The first line has the notifications of the inventory. If the input ends without the line ``{"end": true}``, the controller was
killed: the program then sends the message ``aborted`` of the first line.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import urllib.error
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from ansible.module_utils import urls

#: Seconds beyond a timeout after which a recipient that does not notice it is given up.
MARGIN = 1


class NotSentError(Exception):
    """A notification could not be sent. The message contains neither its URL nor its headers."""


class Recipient(threading.Thread):
    """Sends the messages for one entry of ``fleet_notifications``, in order."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        """Prepare the thread; ``settings`` is the entry, and ``name`` its path."""
        super().__init__(daemon=True)
        self.key = name
        self.settings = settings
        self.messages: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.current = ""

    def run(self) -> None:
        """Send messages until None; print a line for each that cannot be sent."""
        while message := self.messages.get():
            if self.settings["events"] and message["event"] not in self.settings["events"]:
                continue
            self.current = message["event"]
            try:
                if self.settings["webhook"]:
                    post(self.settings, message["body"])
                else:
                    send_with_apprise(self.settings["apprise"], message)
            except NotSentError as error:
                self.report(str(error))
            self.current = ""

    def report(self, problem: str) -> None:
        """Print why the current message cannot be sent."""
        sys.stdout.write(f"{self.key}: cannot send the notification {self.current}: {problem}\n")
        sys.stdout.flush()


def post(settings: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Post the body to a webhook. Redirects count as errors: they would send the headers elsewhere.

    :raises NotSentError: when there is no answer, or one other than 2xx.
    """
    options = {"timeout": settings["timeout"], "follow_redirects": "none", "http_agent": "funnel.tornado", "use_netrc": False}
    headers = {**settings["headers"], "Content-Type": "application/json"}
    try:
        with urls.open_url(settings["webhook"], json.dumps(body), headers, method="POST", **options) as response:
            response.read(1)
    except urllib.error.HTTPError as error:
        raise NotSentError(f"the server answered {error.code}") from error
    except (OSError, ValueError, HTTPException, urls.ConnectionError) as error:
        raise NotSentError(reason(error, settings["timeout"])) from error


def reason(error: Exception, timeout: int) -> str:
    """Return why there is no answer, without the text of an error, which may contain the URL."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return no_answer(timeout)
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__


def no_answer(timeout: int) -> str:
    """Return the message after ``timeout`` seconds without an answer."""
    return f"no answer within {timeout} s"


def send_with_apprise(url: str, message: Mapping[str, Any]) -> None:
    """Send the text of a message with Apprise.

    :raises NotSentError: when Apprise is missing, or cannot send it.
    """
    try:
        apprise = importlib.import_module("apprise")
    except ImportError as error:
        raise NotSentError("the controller lacks the Python package apprise") from error
    sender = apprise.Apprise()
    # The text quotes apps. Without its format, Apprise takes it for the format of the recipient, which is HTML for e-mails.
    text = apprise.NotifyFormat.TEXT
    if not (sender.add(url) and sender.notify(title=message["subject"], body=message["text"], body_format=text)):
        raise NotSentError("Apprise could not deliver it")


def main() -> None:
    """Send all messages; end when each recipient has answered, or its timeout is over."""
    settings = json.loads(sys.stdin.readline())
    recipients = [Recipient(f"fleet_notifications[{i}]", each) for i, each in enumerate(settings["notifications"])]
    for recipient in recipients:
        recipient.start()
    message: Mapping[str, Any] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("end"):
            break
        for recipient in recipients:
            recipient.messages.put(message)
    for recipient in recipients:
        if not message.get("end"):
            recipient.messages.put(settings["aborted"])
        recipient.messages.put(None)
    for recipient in recipients:
        recipient.join(recipient.settings["timeout"] + MARGIN)
        if recipient.is_alive():
            recipient.report(no_answer(recipient.settings["timeout"]))
    sys.stdout.flush()
    os._exit(0)  # does not wait for a recipient that does not answer


if __name__ == "__main__":
    main()
