"""Renew certificates when their ACME server suggests it, such as after a mass revocation: renewal information, RFC 9773.

certbot asks for this information since version 4.1 only. ``python3 renewal_information.py SET``, which certbot.timer runs before
certbot, renews the certificates of a set. It is installed as a single file, so it imports the standard library only; it runs with
the distribution's python3, which an upgrade of the distribution replaces, and which is Python 3.10 on Ubuntu 22.04.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Timeout in seconds of a step of a request, and of all requests together.
TIMEOUT, DEADLINE = 5.0, 20.0

#: Maximum size of a response.
MAX_BYTES = 1 << 16

#: Seconds until a server is asked again: at least, at most, without its advice, and after a failure.
MIN_PAUSE, MAX_PAUSE, DEFAULT_PAUSE, FAILURE_PAUSE = 60.0, 86_400.0, 6 * 3600.0, 3600.0

#: Seconds after a renewal within which the server cannot suggest another one.
RENEWAL_PAUSE = 86_400.0

#: Timeouts in seconds of a renewal, and of waiting for another certbot process.
RENEWAL_TIMEOUT, LOCK_TIMEOUT = 600.0, 120.0


@dataclass(frozen=True)
class Suggestion:
    """When an ACME server suggests to renew a certificate; the times are Unix timestamps.

    The window from ``begins`` to ``ends`` is for ``certificate``; both are 0 if the server suggests nothing. ``ask_at`` is the
    time of the next request, ``renewed_at`` that of the last renewal that followed a suggestion.
    """

    certificate: str = ""
    begins: float = 0.0
    ends: float = 0.0
    explanation: str = ""
    ask_at: float = 0.0
    renewed_at: float = 0.0
    failure: str = ""

    def of(self, certificate: str) -> Suggestion:
        """Return the suggestion for ``certificate``, which is empty if the certificate has been replaced."""
        return self if self.certificate == certificate else Suggestion(certificate, renewed_at=self.renewed_at)

    def is_due(self, now: float) -> bool:
        """Return whether to renew the certificate now."""
        return 0 < self.begins <= now and now >= self.renewed_at + RENEWAL_PAUSE

    def problem(self, now: float) -> str:
        """Return that a suggested renewal failed or is overdue; an empty string otherwise."""
        if not self.begins or not (self.failure or self.ends <= now):
            return ""
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.begins))
        more = f" ({self.explanation})" if self.explanation else ""
        failure = f"; its renewal failed: {self.failure}" if self.failure else ""
        return f"the ACME server has suggested renewal since {since}{more}, such as after a revocation{failure}"


def record_path(lineage: str, base: Path = Path("/")) -> Path:
    """Return the path of the last suggestion for a certificate of certbot."""
    return base / f"etc/letsencrypt/funnel/{lineage}.renewal.json"


def load(path: Path) -> Suggestion:
    """Return the suggestion in a file; an empty one if there is none, or one that cannot be read."""
    try:
        return Suggestion(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Suggestion()


def save(path: Path, suggestion: Suggestion) -> None:
    """Write a suggestion atomically, readable by root only; a full disk only makes the next run ask again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False) as file:
            try:
                json.dump(asdict(suggestion), file)
                file.flush()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink()
                raise


def finish(lineage: str, base: Path = Path("/"), failure: str = "") -> None:
    """Record the end of a renewal; the server is not asked about a new certificate at once."""
    path, now = record_path(lineage, base), time.time()
    known = load(path)
    if failure:
        save(path, replace(known, failure=failure))
    else:
        renewed_at = now if known.is_due(now) else known.renewed_at
        save(path, Suggestion(identify(_chain(lineage, base)), ask_at=now + DEFAULT_PAUSE, renewed_at=renewed_at))


def identify(chain: Path) -> str:
    """Return the identifier of the first certificate in a PEM file (RFC 9773, 4.1); an empty string if it has none."""
    command = ["openssl", "x509", "-in", str(chain), "-noout", "-serial", "-ext", "authorityKeyIdentifier"]
    try:
        shown = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    serial = re.search(r"^serial=([0-9A-F]+)$", shown, re.MULTILINE)
    key = re.search(r"^\s+(?:keyid:)?([0-9A-F]{2}(?::[0-9A-F]{2})+)\s*$", shown, re.MULTILINE)
    if not serial or not key:
        return ""
    number = int(serial[1], 16)
    parts = bytes.fromhex(key[1].replace(":", "")), number.to_bytes(number.bit_length() // 8 + 1, "big")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def parse_time(text: str) -> float:
    """Return the Unix timestamp of a time as in RFC 3339, without its fraction of a second.

    `datetime.fromisoformat` accepts neither ``Z`` nor all fractions in Python 3.10, the python3 of Ubuntu 22.04.

    :raises ValueError: if it is none.
    """
    return datetime.strptime(re.sub(r"\.\d+", "", text).upper(), "%Y-%m-%dT%H:%M:%S%z").timestamp()


def suggestions(servers: Mapping[str, str], base: Path = Path("/"), *, write: bool = True) -> dict[str, Suggestion]:
    """Return the suggestions for certificates of certbot, given the directory URL of their ACME server by name.

    A server is asked when its last answer is too old. It is no failure if it does not answer. Certificates that the deadline
    leaves without a request are the first ones of the next run.
    """
    found = {name: load(record_path(name, base)).of(identify(_chain(name, base))) for name in servers}
    now = time.time()
    # A later time was recorded before the clock was set back.
    old = {name: known for name, known in found.items() if known.certificate and not now < known.ask_at <= now + MAX_PAUSE}
    directories: dict[str, dict[str, Any] | None] = {}
    asked: set[str] = set()
    answers: dict[str, Suggestion] = {}

    def ask() -> None:
        for name, known in sorted(old.items(), key=lambda item: item[1].ask_at):
            server = servers[name]
            with contextlib.suppress(Exception):  # whatever a server answers must not fail the caller
                if server not in directories:
                    directories[server] = None
                    directories[server] = _fetch(server)[0]
                if (directory := directories[server]) is not None:
                    asked.add(name)
                    resource = directory.get("renewalInfo")
                    answers[name] = _ask(resource, known) if resource else replace(known, ask_at=now + MAX_PAUSE)

    thread = threading.Thread(target=ask, daemon=True)  # a response that never ends must not delay the caller
    thread.start()
    thread.join(DEADLINE)
    for name, known in old.items():
        failed = name in asked or directories.get(servers[name], {}) is None
        found[name] = answers.get(name, replace(known, ask_at=now + (FAILURE_PAUSE if failed else MIN_PAUSE)))
        if write:
            save(record_path(name, base), found[name])
    return found


def _chain(lineage: str, base: Path) -> Path:
    return base / f"etc/letsencrypt/live/{lineage}/fullchain.pem"


def _ask(resource: str, known: Suggestion) -> Suggestion:
    answer, headers = _fetch(f"{resource.rstrip('/')}/{known.certificate}")
    if "suggestedWindow" not in answer:
        return replace(known, ask_at=time.time() + FAILURE_PAUSE)
    window, explanation = answer["suggestedWindow"], str(answer.get("explanationURL", ""))
    begins, ends = (parse_time(window[key]) for key in ("start", "end"))
    retry_after = headers.get("Retry-After", "")
    pause = float(retry_after) if re.fullmatch(r"\d{1,9}", retry_after) else DEFAULT_PAUSE
    return replace(
        known,
        begins=begins,
        ends=ends,
        explanation=explanation if re.fullmatch(r"https?://[!-~]{1,200}", explanation) else "",
        ask_at=time.time() + min(max(pause, MIN_PAUSE), MAX_PAUSE),
    )


def _fetch(url: str) -> tuple[dict[str, Any], Message]:
    """Return the JSON object and the headers of a response; an empty object if the server has no such resource.

    :raises OSError: if the server cannot answer.
    :raises ValueError: if it answers something else.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(url)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT, context=ssl.create_default_context())
    with contextlib.closing(connection):
        connection.request("GET", parts.path, headers={"User-Agent": "funnel.tornado"})
        response = connection.getresponse()
        if response.status in (404, 410):
            return {}, response.headers
        if response.status != 200:
            raise OSError(response.status)
        return json.loads(response.read(MAX_BYTES)), response.headers


def renew(lineage: str) -> str:
    """Renew a certificate with certbot; return why that failed, or an empty string."""
    command = ["certbot", "renew", "--cert-name", lineage, "--force-renewal", "--no-random-sleep-on-renew"]
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=RENEWAL_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "certbot did not end in time"
        except OSError as error:
            return str(error)
        if done.returncode == 0:
            return ""
        if "Another instance of Certbot" not in done.stdout or time.monotonic() > deadline:
            break
        time.sleep(2)
    sys.stdout.write(done.stdout)
    reason = re.search(r"Failed to renew certificate \S+ with error: (.+)", done.stdout)
    return reason[1] if reason else "certbot failed; /var/log/letsencrypt/letsencrypt.log shows why"


def main(set_name: str, base: Path = Path("/")) -> None:
    """Renew the certificates of a set for which that is suggested now."""
    servers = {}
    for file in sorted((base / "etc/letsencrypt/renewal").glob(f"{set_name}.*.conf")):
        if server := re.search(r"^server = (\S+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            servers[file.stem] = server[1]
    for name, suggestion in suggestions(servers, base).items():
        if suggestion.is_due(time.time()):
            finish(name, base, renew(name))


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1])
