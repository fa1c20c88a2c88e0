"""Pages and handlers, served by Tornado's test case."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from sample_app.settings import Settings, SettingsError
from sample_app.web import make_app
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.testing import AsyncHTTPTestCase, ExpectLog, gen_test
from tornado.web import Application
from tornado.websocket import websocket_connect

from tests.support.sample_app import ROOT

IDENTITY = {"TORNADO_APP": "sample", "TORNADO_RELEASE": "1f2e3d4c", "TORNADO_SLOT": "a", "TORNADO_PROCESS": "0"}


class TestApp(AsyncHTTPTestCase):
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in IDENTITY.items():
            monkeypatch.setenv(name, value)
        self.monkeypatch = monkeypatch

    def get_app(self) -> Application:
        return make_app(config=Settings(origins="https://a.example,http://b.example:8080"), cookie_secret="test secret")

    def get_httpserver_options(self) -> dict[str, Any]:
        return {"xheaders": True, "max_body_size": 60 << 20}

    def text(self, path: str, **options: Any) -> str:
        response = self.fetch(path, raise_error=True, **options)
        return response.body.decode()

    def test_page_shows_its_process_and_loads_no_external_resources(self) -> None:
        page = self.text("/", headers={"X-Real-Ip": "192.0.2.1", "X-Scheme": "https", "Host": "shop.example.com"})
        shown = dict(re.findall(r'id="(\w+)">([^<]+)<', page))
        assert shown["hostname"] == os.uname().nodename
        assert shown["release"] == "1f2e3d4c"
        assert shown["process"] == "a/0"
        assert shown["pid"] == str(os.getpid())
        assert (shown["protocol"], shown["remote_ip"], shown["host"]) == ("https", "192.0.2.1", "shop.example.com")
        resources = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert len([link for link in resources if re.match(r"/static/[\w.]+\?v=\w{32}", link)]) == 4
        assert all(link.startswith("/") for link in resources)

    def test_page_escapes_values(self) -> None:
        self.monkeypatch.setenv("TORNADO_RELEASE", "<b>1</b>")
        assert 'id="release">&lt;b&gt;1&lt;/b&gt;<' in self.text("/")

    def test_visits_are_counted_in_a_signed_cookie(self) -> None:
        first = self.fetch("/")
        assert b'id="visits">1<' in first.body
        cookie = first.headers["Set-Cookie"].partition(";")[0]
        assert 'id="visits">2<' in self.text("/", headers={"Cookie": cookie})
        assert 'id="visits">1<' in self.text("/", headers={"Cookie": cookie[:-2] + 'x"'}), "forged"

    def test_healthz(self) -> None:
        response = self.fetch("/healthz")
        assert json.loads(response.body) == {"status": "ok", "release": "1f2e3d4c"}
        assert response.headers["Cache-Control"] == "no-store"

    def test_whoami(self) -> None:
        assert json.loads(self.text("/whoami")) == {
            "app": "sample",
            "release": "1f2e3d4c",
            "slot": "a",
            "process": "0",
            "pid": os.getpid(),
            "hostname": os.uname().nodename,
            "remote_ip": "127.0.0.1",
            "protocol": "http",
            "host": f"127.0.0.1:{self.get_http_port()}",
        }

    def test_sleep(self) -> None:
        start = time.monotonic()
        assert json.loads(self.text("/sleep?seconds=0.2"))["pid"] == os.getpid()
        assert time.monotonic() - start >= 0.2
        for invalid in ("-1", "60.1", "nan", "inf", "long"):
            with ExpectLog("tornado.general", "400 GET /sleep", required=False):
                assert self.fetch(f"/sleep?seconds={invalid}").code == 400

    def test_echo(self) -> None:
        response = self.fetch("/echo", method="POST", body=b"\0\xff", headers={"Content-Type": "image/x-odd"})
        assert (response.body, response.headers["Content-Type"]) == (b"\0\xff", "image/x-odd")

    def test_notes_are_stored_one_per_line(self) -> None:
        with tempfile.TemporaryDirectory() as home:
            self.monkeypatch.setenv("HOME", home)
            assert self.text("/notes") == ""
            for note in ("grüezi", "again", "again"):
                assert self.fetch("/notes", method="POST", body=note).code == 201
            for invalid in ("\n", "two\nlines", "x" * 201):
                with ExpectLog("tornado.general", "400 POST /notes", required=False):
                    assert self.fetch("/notes", method="POST", body=invalid).code == 400
            assert self.text("/notes") == (Path(home) / "notes").read_text() == "grüezi\nagain\nagain\n"

    def test_upload_counts_raw_and_multipart_bodies(self) -> None:
        for kind in ("application/octet-stream", "multipart/form-data; boundary=x"):
            body = b"--x\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n" + b"y" * 1000 + b"\r\n--x--\r\n"
            response = json.loads(self.text("/upload", method="POST", body=body, headers={"Content-Type": kind}))
            assert response == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    def test_upload_of_fifty_megabytes(self) -> None:
        body = b"x" * (50 << 20)
        response = json.loads(self.text("/upload", method="POST", body=body, request_timeout=20))
        assert response["bytes"] == len(body)

    def test_only_versioned_static_files_are_cached(self) -> None:
        link = re.search(r'href="(/static/style\.css\?v=\w+)"', self.text("/"))
        assert link is not None
        versioned, plain = self.fetch(link[1]), self.fetch("/static/style.css")
        assert versioned.body == plain.body == (ROOT / "sample_app/static/style.css").read_bytes()
        assert "max-age=315360000" in versioned.headers["Cache-Control"]
        assert "Cache-Control" not in plain.headers

    def test_favicon_and_robots_are_served(self) -> None:
        assert self.fetch("/favicon.ico").body.startswith(b"\0\0\1\0")
        assert self.text("/robots.txt").startswith("User-agent: *")

    def socket_url(self, path: str) -> str:
        return self.get_url(path).replace("http", "ws", 1)

    @gen_test
    async def test_websocket_echoes_text_and_bytes(self) -> None:
        socket = await websocket_connect(self.socket_url("/ws"))
        for message in ("grüezi", b"\0\xff"):
            await socket.write_message(message, binary=isinstance(message, bytes))
            assert await socket.read_message() == message
        socket.close()

    @gen_test
    async def test_websocket_sends_ticks(self) -> None:
        socket = await websocket_connect(self.socket_url("/ticks"))
        ticks = [json.loads(str(await socket.read_message())) for _ in range(2)]
        assert [tick["tick"] for tick in ticks] == [1, 2]
        assert ticks[0]["time"] < ticks[1]["time"]
        assert (ticks[0]["release"], ticks[0]["slot"], ticks[0]["process"]) == ("1f2e3d4c", "a", "0")
        socket.close()

    @gen_test
    async def test_cross_origin_websocket_is_rejected(self) -> None:
        headers = HTTPHeaders({"Origin": "https://elsewhere.example.com"})
        with pytest.raises(HTTPClientError, match="403"):
            await websocket_connect(HTTPRequest(self.socket_url("/ws"), headers=headers))

    def error(self, path: str, status: int, reason: str, **options: Any) -> HTTPHeaders:
        """Verify an error response, and return its headers."""
        with ExpectLog("tornado.general", ".*", required=False):
            response = self.fetch(path, **options)
        assert json.loads(response.body) == {"error": {"status": status, "reason": reason}}
        assert (response.code, response.headers["Content-Type"]) == (status, "application/json; charset=UTF-8")
        return response.headers

    def test_errors_are_json(self) -> None:
        self.error("/none", 404, "Not Found")
        self.error("/none", 404, "Not Found", method="POST", body="x")
        self.error("/sleep?seconds=x", 400, "seconds must be a number from 0 to 60")

    def test_other_methods_return_405_with_allow(self) -> None:
        assert self.error("/whoami", 405, "Method Not Allowed", method="DELETE")["Allow"] == "GET, OPTIONS"
        headers = self.error("/notes", 405, "Method Not Allowed", method="TRACE", allow_nonstandard_methods=True)
        assert headers["Allow"] == "GET, POST, OPTIONS"

    def test_options_return_the_allowed_methods(self) -> None:
        response = self.fetch("/notes", method="OPTIONS")
        assert (response.code, response.headers["Allow"], response.body) == (204, "GET, POST, OPTIONS", b"")

    def test_cors_allows_configured_origins_to_use_documents(self) -> None:
        preflight = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
        for path in ("/documents", f"/documents/{'0' * 24}"):
            for origin in ("https://a.example", "http://b.example:8080"):
                response = self.fetch(path, method="OPTIONS", headers=preflight | {"Origin": origin})
                assert response.code == 204
                assert response.headers["Access-Control-Allow-Origin"] == origin
                assert response.headers["Access-Control-Allow-Methods"] == response.headers["Allow"]
                assert response.headers["Access-Control-Allow-Headers"] == "Content-Type"
                assert "Origin" in response.headers["Vary"]
        headers = self.error(
            "/documents",
            503,
            "no database is configured: set MONGODB_URI or MONGODB_HOST",
            headers={"Origin": "https://a.example"},
        )
        assert headers["Access-Control-Allow-Origin"] == "https://a.example", "the page can read the reason"
        assert "Access-Control-Allow-Credentials" not in headers

    def test_cors_refuses_other_origins(self) -> None:
        for path, origin in (("/documents", "https://b.example"), ("/documents", "null"), ("/whoami", "https://a.example")):
            response = self.fetch(path, method="OPTIONS", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
            assert response.code == 204
            assert not [name for name in response.headers if name.startswith("Access-Control")]

    def test_cross_origin_changes_are_rejected_including_forms(self) -> None:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        reason = "this origin is not allowed to change anything here"
        for path, origin in (
            ("/documents", "https://b.example"),
            ("/documents", "null"),
            ("/documents", "http://["),
            ("/notes", "https://a.example"),
            ("/upload", "https://a.example"),
            ("/echo", "https://a.example"),
            ("/none", "https://b.example"),
        ):
            self.error(path, 403, reason, method="POST", body="title=x", headers=form | {"Origin": origin})
        for method, body in (("PUT", "{}"), ("PATCH", "{}"), ("DELETE", None)):
            path = f"/documents/{'0' * 24}"
            self.error(path, 403, reason, method=method, body=body, headers={"Origin": "https://b.example"})

    def test_changes_are_allowed_from_own_and_configured_origins_and_without_origin(self) -> None:
        own = f"127.0.0.1:{self.get_http_port()}"
        for headers in ({}, {"Origin": f"http://{own}"}, {"Origin": f"https://{own.upper()}"}):
            assert self.text("/echo", method="POST", body="x", headers=headers) == "x"
        self.error(
            "/documents",
            503,
            "no database is configured: set MONGODB_URI or MONGODB_HOST",
            method="POST",
            body="title=x",
            headers={"Origin": "https://a.example"},
        )

    def test_large_responses_are_compressed_if_accepted(self) -> None:
        path = "/static/style.css"
        plain, packed = self.fetch(path), self.fetch(path, headers={"Accept-Encoding": "gzip"}, decompress_response=False)
        assert "Content-Encoding" not in plain.headers
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        assert "Accept-Encoding" in plain.headers["Vary"]

    def test_fetch_without_an_upstream_returns_503(self) -> None:
        self.error("/fetch/one", 503, "no upstream is configured: set SAMPLE_UPSTREAM")


def test_config_replaces_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_PORT", "none")
    with pytest.raises(SettingsError, match="MONGODB_PORT"):
        make_app()
    assert make_app(config=Settings(env="test")).settings["config"].env == "test"


class TestDebug(AsyncHTTPTestCase):
    def get_app(self) -> Application:
        return make_app(config=Settings(theme="dark"), serve_traceback=True)

    def test_error_contains_the_traceback(self) -> None:
        with ExpectLog("tornado.general", ".*", required=False):
            error = json.loads(self.fetch("/sleep?seconds=x").body)["error"]
        assert "HTTPError: HTTP 400" in error["traceback"]

    def test_theme_is_configurable(self) -> None:
        assert b'data-theme="dark"' in self.fetch("/").body
