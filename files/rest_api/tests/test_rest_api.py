"""Tests of the API; run ``python -m pytest`` in the directory of the app."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient
from rest_api.web import create_app

CONFIG = """
page_size = 1
runs = [{id = "one", status = "failed"}, {id = "two", status = "running"}]
"""


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    return create_app(config).test_client()


def test_runs_are_listed_in_pages(client: FlaskClient) -> None:
    assert client.get("/api/").json == {"runs": "/api/runs"}
    assert client.get("/api/runs").json == {"runs": [{"id": "one", "status": "failed"}], "total": 2}


def test_runs_are_filtered_by_status(client: FlaskClient) -> None:
    assert client.get("/api/runs?status=running").json == {"runs": [{"id": "two", "status": "running"}], "total": 1}
    assert client.get("/api/runs?status=none").json == {"runs": [], "total": 0}


def test_run_is_returned_by_id(client: FlaskClient) -> None:
    assert client.get("/api/runs/two").json == {"id": "two", "status": "running"}


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/runs/three", 404, "no such run: three"),
        ("/api/sleep?seconds=-1", 400, "seconds must be a number from 0 to 60"),
        ("/runs", 404, "The requested URL was not found"),
    ],
)
def test_errors_are_json(client: FlaskClient, path: str, status: int, message: str) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert response.json is not None
    assert response.json["error"]["status"] == status
    assert response.json["error"]["message"].startswith(message)


def test_exception_is_logged_and_not_returned(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    response = client.get("/api/fail")
    assert response.status_code == 500
    assert "intentional failure" not in response.text
    assert "intentional failure" in caplog.text
    assert "Exception on /api/fail [GET]" in caplog.text


def test_health_check_returns_the_release(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORNADO_RELEASE", "1f2e3d4c5b6a")
    assert client.get("/api/healthz").json == {"status": "ok", "release": "1f2e3d4c5b6a"}
