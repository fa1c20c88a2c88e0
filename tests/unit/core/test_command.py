"""Programs of the host."""

from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run


@pytest.mark.parametrize("path", ["/opt/first:/usr/bin", "/opt/first", None])
def test_system_programs_are_found_whatever_the_path_of_the_connection(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.setenv("PATH", path) if path else monkeypatch.delenv("PATH")
    directories = run(["sh", "-c", "echo $PATH"]).output.strip().split(":")
    assert directories[0] == ("/opt/first" if path else "/usr/local/sbin")
    assert {"/usr/sbin", "/sbin", "/usr/bin"} <= {*directories}
    assert len(directories) == len({*directories})
