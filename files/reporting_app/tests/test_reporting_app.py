"""``python -m pytest`` in the directory of the app: against an API that is a real server, on a port of its own."""

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
ANSWERS = {"": {"runs": [RUN], "total": 7}, "failed": {"runs": [RUN | {"id": "<b>"}], "total": 1}}
API = Flask(__name__)


@API.get("/api/runs")
def runs() -> Response:
    return jsonify(ANSWERS[request.args.get("status", "")])


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
    assert "7 in all" in page


def test_runs_of_one_status_are_listed_and_what_the_api_says_is_escaped(client: FlaskClient) -> None:
    page = client.get("/?status=failed").text
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert 'href="/?status=failed" aria-current="page"' in page


def test_a_run_is_reported_on(client: FlaskClient) -> None:
    assert "<dt>Yield</dt><dd>1.5 Gb</dd>" in client.get("/runs/a%20b").text


@pytest.mark.parametrize(("path", "status"), [("/runs/none", 404), ("/runs/broken", 502), ("/none", 404)])
def test_errors_are_pages(client: FlaskClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert f"<h2>{status}: " in answer.text


def test_an_api_that_does_not_answer_is_named_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    answer = create_app(api_url="http://127.0.0.1:1/api/").test_client().get("/")
    assert answer.status_code == 502
    assert "127.0.0.1:1" not in answer.text
    assert "GET /: the API at http://127.0.0.1:1/api/ does not answer: " in caplog.text


def test_health_tells_the_release_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORNADO_RELEASE", "1f2e3d4c5b6a")
    answer = create_app(api_url="http://127.0.0.1:1/api/").test_client().get("/healthz")
    assert answer.json == {"status": "ok", "release": "1f2e3d4c5b6a"}
