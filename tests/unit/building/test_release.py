from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import (
    Programs,
    _failure_message,
    plan_release,
    process_command,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

PROGRAMS = Programs("launcher", {"__main__.py": "runner"})


def app(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, **keys}})["shop"]


def release(revision: str = "r1", programs: Programs = PROGRAMS, **keys: Any) -> str:
    return plan_release(app(**keys), revision, programs).id


def test_equal_inputs_have_equal_release_ids() -> None:
    assert release(env={"A": "1"}) == release(env={"A": "1"})


@pytest.mark.parametrize(
    "keys",
    [
        {"env": {"A": "1"}},
        {"secrets": {"A": "1"}},
        {"processes": 7},
        {"port": 8000},
        {"open_files": 4096},
        {"drain": 1},
        {"static": {"path": "www"}},
        {"static": {"url": "/assets/"}},
        {"health": {"path": "/up"}},
        {"shared": ["media"]},
        {"packages": ["ffmpeg"]},
        {"upload_size": "1m"},
        {"hooks": {"build": "make"}},
        {"hooks": {"before_switch": {"command": "python migrate.py", "once": True}}},
        {"soak": 5},
        {"build": {"env": {"NODE_ENV": "production"}}},
        {"python": {"version": "3.13"}},
        {"run": {"wsgi": "shop.web:make_app"}},
        {"debug": True},
    ],
)
def test_process_settings_change_the_release_id(keys: dict[str, Any]) -> None:
    assert release(**keys) != release()


def test_revision_and_programs_change_the_release_id() -> None:
    assert len({release(), release("r2"), release(programs=Programs("launcher", {"__main__.py": "newer"}))}) == 3


def test_site_options_do_not_change_the_release_id() -> None:
    site: dict[str, Any] = {
        "extra": "etag off;",
        "aliases": ["b.test"],
        "basic_auth": {"ann": "$6$a$b"},
        "paths": {"/a": {"upload_size": "1m"}},
        "maintenance": {"retry_after": 1},
    }
    assert release(domains=["a.test"], **site) == release(domains=["a.test"])


def test_the_runner_gets_the_largest_upload_size() -> None:
    words = process_command(app(upload_size="1m", paths={"/a": {"upload_size": "9m"}}))
    assert words[words.index("--max-body-size") + 1] == "9m"


@pytest.mark.parametrize(
    "keys", [{"run": {"procfile": "api"}}, {"run": {"procfile": "web"}, "workers": {"worker": {"count": 2}}}]
)
def test_procfile_settings_change_the_release_id(keys: dict[str, Any]) -> None:
    assert release(port=8000, **keys) != release(port=8000, run={"procfile": "web"})


def test_git_access_does_not_change_the_release_id() -> None:
    source = {"git": "git@example.com:shop.git"}
    access = {"deploy_key": "hunter2", "host_key": "example.com ssh-ed25519 AAAA"}
    planned = plan_release(app(source=source | access), "r1", PROGRAMS)
    assert planned == plan_release(app(source=source), "r1", PROGRAMS)
    assert "hunter2" not in str(planned)


def test_secrets_are_not_in_the_manifest() -> None:
    assert "hunter2" not in str(plan_release(app(secrets={"KEY": "hunter2"}), "r1", PROGRAMS))


def test_the_runner_serves_apps_on_unix_sockets() -> None:
    assert " ".join(process_command(app())) == (
        "python {release}/runner shop.web:make_app --socket {socket} --xheaders --max-body-size 50m --drain 30"
        " --pid-file {run}/{process}.pid --metrics {run}/{process}.metrics"
    )


def test_the_runner_serves_asgi_by_uvicorn() -> None:
    words = process_command(app(run={"asgi": "shop.asgi:make_app()", "loop": "asyncio"}))
    assert words[:6] == ["python", "{release}/runner", "shop.asgi:make_app()", "--asgi", "--loop", "asyncio"]


def test_the_runner_serves_wsgi_with_threads() -> None:
    words = " ".join(process_command(app(run={"wsgi": "shop.wsgi:application", "threads": 3})))
    assert words.startswith("python {release}/runner shop.wsgi:application --wsgi --threads 3 --socket {socket} ")
    assert "--threads" not in process_command(app(run={"wsgi": "shop.wsgi:application"})), "the default of the runner"


def test_the_runner_logs_to_stderr_and_syslog() -> None:
    words = " ".join(process_command(app(services={"syslog": {"host": "logs1", "port": 5514}})))
    assert " --log-to stderr --log-to udp://logs1:5514 " in words


def test_debug_and_watch_are_passed_to_the_runner() -> None:
    assert process_command(app(debug=True, watch=["a.yml", "b/c"]))[-9:-4] == ["--debug", "--watch", "a.yml", "--watch", "b/c"]
    assert "--debug" not in process_command(app())


def test_hooks_are_split_into_words_and_keep_braces() -> None:
    hooks = {"before_switch": {"command": "python migrate.py --name='{a} b'", "once": True}, "timeout": 5}
    manifest = plan_release(app(hooks=hooks), "r1", PROGRAMS)
    assert manifest.hooks == {"before_switch": ["python", "migrate.py", "--name={a} b"]}
    assert (manifest.hooks_once, manifest.hooks_timeout) == (["before_switch"], 5)


@pytest.mark.parametrize(
    ("run", "served"),
    [({"app": "a:b"}, True), ({"wsgi": "a:b"}, True), ({"asgi": "a:b()"}, True), ({"command": "x {socket}"}, False)],
)
def test_the_manifest_records_whether_the_runner_serves(run: dict[str, Any], *, served: bool) -> None:
    assert plan_release(app(run=run), "r1", PROGRAMS).runner is served


def test_summaries_contain_no_settings() -> None:
    planned = plan_release(app(processes=2, secrets={"KEY": "hunter2"}), "r1", PROGRAMS)
    assert planned.summary == f"release {planned.id} of revision r1, 2 processes"


def test_full_file_systems_are_reported_first(tmp_path: Path) -> None:
    layout = Layout("shop", tmp_path)
    layout.releases.mkdir(parents=True)
    for error in (OSError(28, os.strerror(28), "/srv/shop"), BuildError(f"tar: Cannot write: {os.strerror(28)}")):
        assert re.match(
            r"tornado_apps\.shop: release r1 cannot be built: the file system at /\S* is full, \d+ MiB and \d+ inodes are free: ",
            _failure_message(layout, "r1", error),
        )
    assert _failure_message(layout, "r1", BuildError("a reason")) == "a reason"
    assert _failure_message(layout, "r1", OSError("a reason")) == "tornado_apps.shop: release r1 cannot be built: a reason"


def test_commands_are_split_into_words_without_a_shell() -> None:
    words = process_command(app(run={"command": "python app.py --port={port} --name='a b'"}, port=8000))
    assert words == ["python", "app.py", "--port={port}", "--name=a b"]
