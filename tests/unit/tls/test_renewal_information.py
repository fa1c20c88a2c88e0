from __future__ import annotations

import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.funnel.tornado.plugins.module_utils.tls import renewal_information
from ansible_collections.funnel.tornado.plugins.module_utils.tls.renewal_information import (
    Suggestion,
    finish,
    identify,
    load,
    parse_time,
    record_path,
    save,
    suggestions,
)
from tests.support.pki import Authority

#: The example of RFC 9773, 4.1.
SERIAL, KEY_ID = 0x87654321, bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
IDENTIFIER = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"

NAME = "app.shop"

#: certbot, which notes its arguments, and fails if the file "fail" exists.
CERTBOT = """#!/bin/sh
echo "$@" >> {0}/calls
test ! -e {0}/fail || { echo "Failed to renew certificate app.shop with error: Connection refused"; exit 1; }
"""


def create_certificate(base: Path, name: str, server: str, serial: int = SERIAL) -> None:
    """Create the files of a certificate of certbot with the authority key identifier of the example."""
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial, now, now + timedelta(days=90))
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(KEY_ID, None, None), critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    chain, configuration = (base / f"etc/letsencrypt/{path}" for path in (f"live/{name}/fullchain.pem", f"renewal/{name}.conf"))
    for path, content in {chain: pem, configuration: f"[renewalparams]\nserver = {server}\n".encode()}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def window(begins: float, ends: float) -> str:
    """Return the answer of a server; the times are relative to now, in seconds."""
    start, end = (datetime.fromtimestamp(time.time() + offset, UTC).isoformat() for offset in (begins, ends))
    return json.dumps({"suggestedWindow": {"start": start, "end": end}, "explanationURL": "https://acme.test/incident"})


class Datetime310(datetime):
    """The class datetime of Python 3.10, which reads only what ``isoformat`` writes."""

    @classmethod
    def fromisoformat(cls, text: str) -> Self:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?([+-]\d\d:\d\d)?", text):
            raise ValueError(text)
        return super().fromisoformat(text)


@dataclass
class Server:
    """An ACME server with its answers about certificates, which it sends byte by byte with a ``pause``."""

    url: str = ""
    answer: str = ""
    answers: dict[str, str] = field(default_factory=dict)  # by the path of the request
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    directory: str = ""
    pause: float = 0.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run an ACME server whose certificate is trusted."""
    found = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append(self.path)
            own = self.path == "/dir"
            body = (found.directory if own else found.answers.get(self.path, found.answer)).encode()
            self.send_response(200 if own else found.status)
            for header, value in ({} if own else found.headers).items():
                self.send_header(header, value)
            self.end_headers()
            whole = own or not found.pause or self.path in found.answers
            for part in [body] if whole else (body[index : index + 1] for index in range(len(body))):
                self.wfile.write(part)
                time.sleep(0 if own else found.pause)

        def log_message(self, *_arguments: object) -> None:
            pass

    authority = Authority("acme", datetime.now(UTC))
    authority.leaf("localhost").write(tmp_path, authority.pem)
    (tmp_path / "ca.pem").write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    listener = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    found.url = f"https://localhost:{listener.server_port}/dir"
    found.directory = json.dumps({"renewalInfo": f"https://localhost:{listener.server_port}/info/"})
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def base(tmp_path: Path, server: Server) -> Path:
    """Return the root of a host with a certificate and a program certbot."""
    directory = tmp_path / "base"
    create_certificate(directory, NAME, server.url)
    return directory


def ask(base: Path, server: Server) -> Suggestion:
    return suggestions({NAME: server.url}, base)[NAME]


def test_certificate_is_identified_as_in_the_rfc(tmp_path: Path) -> None:
    create_certificate(tmp_path, NAME, "")
    assert identify(tmp_path / f"etc/letsencrypt/live/{NAME}/fullchain.pem") == IDENTIFIER
    (tmp_path / "empty.pem").touch()
    assert identify(tmp_path / "empty.pem") == ""


@pytest.mark.parametrize(("begins", "ends", "due"), [(-60, 60, True), (-120, -60, True), (60, 120, False)])
def test_certificate_is_due_when_the_suggested_window_has_begun(
    base: Path, server: Server, begins: int, ends: int, *, due: bool
) -> None:
    server.answer = window(begins, ends)
    assert ask(base, server).is_due(time.time()) is due
    assert server.requests == ["/dir", f"/info/{IDENTIFIER}"]
    assert record_path(NAME, base).stat().st_mode & 0o777 == 0o600


def test_server_is_not_asked_again_before_the_time_that_it_sets(base: Path, server: Server) -> None:
    server.answer, server.headers = window(60, 120), {"Retry-After": "900"}
    asked = ask(base, server)
    assert 890 < asked.ask_at - time.time() <= 900
    assert ask(base, server) == asked
    assert len(server.requests) == 2
    later = time.time() + 7 * 86_400  # recorded before the clock was set back
    save(record_path(NAME, base), replace(asked, ask_at=later))
    assert ask(base, server).ask_at < later
    save(record_path(NAME, base), replace(asked, ask_at=0))
    server.headers = {"Retry-After": "999999999"}
    assert ask(base, server).ask_at - time.time() <= 86_400
    assert len(server.requests) == 6


def test_nothing_is_written_in_check_mode(base: Path, server: Server) -> None:
    server.answer = window(-60, 60)
    assert suggestions({NAME: server.url}, base, write=False)[NAME].is_due(time.time())
    assert not record_path(NAME, base).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"answer": ""},
        {"answer": "[]"},
        {"answer": '{"suggestedWindow": {"start": "soon", "end": "later"}}'},
        {"answer": '{"suggestedWindow": null}'},
        {"answer": "[" * 60_000},
        {"answer": "x" * 200_000},
        {"status": 404},
        {"status": 500},
        {"directory": "{}"},
        {"directory": '{"renewalInfo": 5}'},
        {"directory": '{"renewalInfo": "http://localhost/"}'},
        {"directory": '{"renewalInfo": "file:///etc/hostname"}'},
        {"status": 302, "headers": {"Location": "file:///etc/hostname"}},
    ],
)
def test_useless_answers_suggest_nothing_and_keep_what_is_known(base: Path, server: Server, change: dict[str, object]) -> None:
    server.answer = window(-60, 60)
    for name, value in change.items():
        setattr(server, name, value)
    asked = ask(base, server)
    assert (asked.begins, asked.ends) == (0, 0)
    assert asked.ask_at > time.time() + 3000
    known = Suggestion(IDENTIFIER, begins=1, ends=2)
    save(record_path(NAME, base), known)
    assert ask(base, server) == replace(known, ask_at=load(record_path(NAME, base)).ask_at)


def test_endless_answer_ends_at_the_deadline(base: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal_information, "DEADLINE", 0.5)
    server.answer, server.pause = window(-60, 60), 0.1
    started = time.monotonic()
    assert not ask(base, server).is_due(time.time())
    assert time.monotonic() - started < 5
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T04:00:00Z",
        "2026-01-02t04:00:00.5z",
        "2026-01-02T04:00:00.123456789Z",
        "2026-01-02T04:00:00+00:00",
        "2026-01-02T06:30:00.25+02:30",
        "2026-01-01T23:00:00-05:00",
    ],
)
def test_times_of_servers_are_read_with_python_3_10(
    base: Path, server: Server, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(renewal_information, "datetime", Datetime310)
    server.answer = json.dumps({"suggestedWindow": {"start": text, "end": text}})
    assert ask(base, server).begins == datetime(2026, 1, 2, 4, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("text", ["", "soon", "2026-01-02", "2026-01-02T04:00:00", "2026-13-02T04:00:00Z"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not match format"):
        parse_time(text)


def create_certificates(base: Path, server: Server, number: int) -> tuple[dict[str, str], list[str]]:
    """Create certificates; return the URL of the server by name, and the path of the request about each of them."""
    names = [f"app.{index}" for index in range(number)]
    for index, name in enumerate(names):
        create_certificate(base, name, server.url, SERIAL + 16 + index)
    chains = [base / f"etc/letsencrypt/live/{name}/fullchain.pem" for name in names]
    return dict.fromkeys(names, server.url), [f"/info/{identify(chain)}" for chain in chains]


@pytest.mark.parametrize("odd", ["[]", "", '{"suggestedWindow": {"start": "soon", "end": "later"}}'])
def test_odd_answer_about_one_certificate_does_not_affect_the_others(base: Path, server: Server, odd: str) -> None:
    servers, paths = create_certificates(base, server, 3)
    server.answer, server.answers = window(-60, 60), {paths[0]: odd}
    found = suggestions(servers, base)
    assert [known.is_due(time.time()) for known in found.values()] == [False, True, True]
    assert found["app.0"].ask_at > time.time() + 3000


def test_server_without_a_directory_does_not_affect_the_others(base: Path, server: Server) -> None:
    servers, _paths = create_certificates(base, server, 3)
    server.answer = window(-60, 60)
    found = suggestions(servers | dict.fromkeys(("app.0", "app.2"), "https://localhost:9/dir"), base)
    assert [known.is_due(time.time()) for known in found.values()] == [False, True, False]
    assert min(known.ask_at for known in found.values()) > time.time() + 3000


def test_certificates_that_the_deadline_left_out_are_the_first_ones_of_the_next_run(
    base: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_information, "DEADLINE", 2.0)
    servers, paths = create_certificates(base, server, 4)
    server.answer, server.pause = window(-60, 60), 0.1
    server.answers = {paths[0]: window(60, 120), paths[2]: window(60, 120), paths[3]: window(-60, 60)}
    server.headers = {"Retry-After": "60"}
    suggestions(servers, base)
    assert server.requests == ["/dir", *paths[:2]], "the answer about the second certificate does not end"
    server.requests.clear()
    later = time.time() + 43_200  # when certbot.timer starts again
    monkeypatch.setattr(time, "time", lambda: later)
    found = suggestions(servers, base)
    assert server.requests == ["/dir", *paths[2:], paths[0], paths[1]]
    assert found["app.3"].is_due(later)


def test_unreachable_server_delays_nothing_else(base: Path) -> None:
    assert suggestions({NAME: "https://localhost:9/dir"}, base)[NAME].begins == 0


def test_next_renewal_is_suggested_after_a_day_at_the_earliest(base: Path, server: Server) -> None:
    server.answer = window(-60, 60)
    assert ask(base, server).is_due(time.time())
    create_certificate(base, NAME, server.url, SERIAL + 1)
    finish(NAME, base)
    assert ask(base, server).begins == 0
    assert len(server.requests) == 2, "a new certificate needs no request"
    save(record_path(NAME, base), replace(load(record_path(NAME, base)), ask_at=0))
    again = ask(base, server)
    assert again.begins
    assert not again.is_due(time.time())
    assert again.is_due(time.time() + 86_400)


def test_failed_and_overdue_renewals_are_problems() -> None:
    assert Suggestion().problem(0) == ""
    begun = Suggestion(IDENTIFIER, begins=60, ends=600)
    assert begun.problem(100) == "", "certbot.timer renews it"
    assert begun.problem(700) == "the ACME server has suggested renewal since 1970-01-01 00:01 UTC, such as after a revocation"
    failed = replace(begun, failure="refused", explanation="https://acme.test/incident")
    assert failed.problem(100) == (
        "the ACME server has suggested renewal since 1970-01-01 00:01 UTC (https://acme.test/incident), such as after a "
        "revocation; its renewal failed: refused"
    )
    assert failed.of("another").problem(700) == ""


def test_program_renews_what_is_due_in_its_set_and_records_a_failure(base: Path, server: Server, tmp_path: Path) -> None:
    """Run the file as on a host: alone, without the collection."""
    create_certificate(base, "app.blog", "https://localhost:9/dir", SERIAL + 1)
    create_certificate(base, "other.shop", server.url, SERIAL + 2)
    (tmp_path / "certbot").write_text(CERTBOT.replace("{0}", str(tmp_path)))
    (tmp_path / "certbot").chmod(0o755)
    (tmp_path / "fail").touch()
    server.answer = window(-60, 60)

    def run() -> Suggestion:
        code = Path(renewal_information.__file__).read_text().replace("main(sys.argv[1])", "main(sys.argv[1], Path(sys.argv[2]))")
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-IS", "-c", code, "app", str(base)], env=environment, check=True, timeout=60)
        return load(record_path(NAME, base))

    assert run().failure == "Connection refused"
    (tmp_path / "fail").unlink()
    assert run().failure == ""
    assert run().renewed_at > 0
    command = f"renew --cert-name {NAME} --force-renewal --no-random-sleep-on-renew\n"
    assert (tmp_path / "calls").read_text() == command * 2
