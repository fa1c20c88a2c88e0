"""Settings: command line, environment, validation."""

from __future__ import annotations

import pytest
from sample_app.settings import Settings, SettingsError, read


def test_command_line_overrides_environment_overrides_defaults() -> None:
    environment = {"MONGODB_HOST": "db", "MONGODB_PORT": "27018", "SAMPLE_JOBS": "1", "LOG_HOST": ""}
    settings = read(["--db-host=other", "--proc=2"], environment)
    assert (settings.db_host, settings.db_port, settings.proc, settings.jobs, settings.log_host) == ("other", 27018, 2, True, "")
    assert read([], {}) == Settings()


def test_lock_server_endpoints() -> None:
    assert read([], {}).endpoints == []
    assert read(["--lock-server"], {}).endpoints == ["http://localhost:2379"]
    assert read(["--lock-server", "--lock-server-host=lock", "--lock-server-port=1"], {}).endpoints == ["http://lock:1"]
    assert read([], {"ETCD_ENDPOINTS": "https://a:1/, http://b:2"}).endpoints == ["https://a:1", "http://b:2"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"MONGODB_PORT": "x"}, "MONGODB_PORT: 'x' is not a number"),
        ([], {"SAMPLE_JOBS": "maybe"}, "SAMPLE_JOBS: 'maybe' is not 1 or 0"),
        ([], {"MONGODB_PORT": "65536"}, "--db-port (MONGODB_PORT): 65536 is not a port: 0 to 65535"),
        ([], {"SAMPLE_LOCK_TTL": "1"}, "--lock-ttl (SAMPLE_LOCK_TTL): 1 is too small: the minimum is 2"),
        ([], {"SAMPLE_ORIGINS": "*"}, "--origins (SAMPLE_ORIGINS): '*' is not a URL such as https://host.example:8443"),
        ([], {"SAMPLE_UPSTREAM": "file:///etc"}, "--upstream (SAMPLE_UPSTREAM): 'file:///etc' is not a URL such as"),
        ([], {"ETCD_ENDPOINTS": "lock:2379"}, "--lock-server-endpoints (ETCD_ENDPOINTS): 'lock:2379' is not a URL such as"),
        (["--ssl"], {}, "--ssl: must be used together with --certificate and --key"),
        (["--debug", "--proc=2"], {}, "--debug: hot reload supports one process only; remove --proc"),
    ],
)
def test_invalid_settings_are_rejected(arguments: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(arguments, environment)
    assert str(caught.value).startswith(message)


def test_secrets_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    secrets = dict.fromkeys(("MONGODB_URI", "MONGODB_PASSWORD", "ETCD_PASSWORD", "COOKIE_SECRET"), "hidden")
    assert "hidden" not in repr(read([], secrets))
    with pytest.raises(SystemExit):
        read(["--help"], secrets)
    shown = capsys.readouterr().out
    assert "variable MONGODB_PASSWORD" in shown
    assert "hidden" not in shown
