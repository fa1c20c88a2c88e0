"""Tests against an API on a real server; run ``python -m pytest`` in the directory of the app."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, Response, abort, jsonify, request
from flask.testing import FlaskClient
from reporting_app.web import create_app
from werkzeug.serving import make_server

RUN = {"id": "a b", "status": "failed", "lanes": 8, "yield_gb": 1.5}
RESPONSES = {"": {"runs": [RUN], "total": 7}, "failed": {"runs": [RUN | {"id": "<b>"}], "total": 1}}
API = Flask(__name__)


@API.get("/api/runs")
def runs() -> Response:
    return jsonify(RESPONSES[request.args.get("status", "")])


@API.get("/api/runs/<run_id>")
def run(run_id: str) -> Response:
    return jsonify(RUN) if run_id == RUN["id"] else abort(500 if run_id == "broken" else 404)


@pytest.fixture(scope="module")
def api_url() -> Iterator[str]:
    server = make_server("127.0.0.1", 0, API)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api/"
    server.shutdown()
    thread.join()


@pytest.fixture
def client(api_url: str, tmp_path: Path) -> FlaskClient:
    config = tmp_path / "config.toml"
    config.write_text('title = "All runs"\napi_timeout = 5\n')
    return create_app(config, api_url).test_client()


def test_runs_are_listed(client: FlaskClient) -> None:
    page = client.get("/").text
    assert "<title>All runs</title>" in page
    assert '<a href="/runs/a%20b">a b</a>' in page
    assert "7 in total" in page


def test_runs_are_filtered_by_status_and_escaped(client: FlaskClient) -> None:
    page = client.get("/?status=failed").text
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert 'href="/?status=failed" aria-current="page"' in page


def test_run_is_shown(client: FlaskClient) -> None:
    assert "<dt>Yield</dt><dd>1.5 Gb</dd>" in client.get("/runs/a%20b").text


@pytest.mark.parametrize(("path", "status"), [("/runs/none", 404), ("/runs/broken", 502), ("/none", 404)])
def test_errors_are_html_pages(client: FlaskClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert f"<h2>{status}: " in response.text


def test_unavailable_api_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    response = create_app(api_url="http://127.0.0.1:1/api/").test_client().get("/")
    assert response.status_code == 502
    assert "127.0.0.1:1" not in response.text
    assert "GET /: the API at http://127.0.0.1:1/api/ is unavailable: " in caplog.text


def test_health_check_returns_the_release_without_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORNADO_RELEASE", "1f2e3d4c5b6a")
    response = create_app(api_url="http://127.0.0.1:1/api/").test_client().get("/healthz")
    assert response.json == {"status": "ok", "release": "1f2e3d4c5b6a"}
