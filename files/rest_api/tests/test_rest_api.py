"""``python -m pytest`` in the directory of the app."""

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


def test_runs_are_listed_by_page(client: FlaskClient) -> None:
    assert client.get("/api/").json == {"runs": "/api/runs"}
    assert client.get("/api/runs").json == {"runs": [{"id": "one", "status": "failed"}], "total": 2}


def test_runs_of_one_status_are_listed(client: FlaskClient) -> None:
    assert client.get("/api/runs?status=running").json == {"runs": [{"id": "two", "status": "running"}], "total": 1}
    assert client.get("/api/runs?status=none").json == {"runs": [], "total": 0}


def test_a_run_is_found_by_its_id(client: FlaskClient) -> None:
    assert client.get("/api/runs/two").json == {"id": "two", "status": "running"}


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/runs/three", 404, "there is no run three"),
        ("/api/sleep?seconds=-1", 400, "seconds must be a number from 0 to 60"),
        ("/runs", 404, "The requested URL was not found"),
    ],
)
def test_errors_are_json(client: FlaskClient, path: str, status: int, message: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json is not None
    assert answer.json["error"]["status"] == status
    assert answer.json["error"]["message"].startswith(message)


def test_the_reason_of_a_failure_is_in_the_log_only(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.get("/api/fail")
    assert answer.status_code == 500
    assert "asked to fail" not in answer.text
    assert "asked to fail" in caplog.text
    assert "Exception on /api/fail [GET]" in caplog.text


def test_health_tells_the_release(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORNADO_RELEASE", "1f2e3d4c5b6a")
    assert client.get("/api/healthz").json == {"status": "ok", "release": "1f2e3d4c5b6a"}
