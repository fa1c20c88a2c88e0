from __future__ import annotations

from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, app_certificates, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests


def shop(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "files/sample_app"}, "run": {"app": "shop.web:make_app"}, **keys}})["shop"]


def test_all_keys_except_source_and_run_have_defaults() -> None:
    app = shop()
    assert (app.name, app.processes, app.drain, app.health.path, app.uses_sockets) == ("shop", "auto", 30, "/", True)


def test_auto_starts_one_process_per_cpu() -> None:
    assert [shop().process_count(8), shop(processes=3).process_count(8)] == [8, 3]


def test_debug_starts_one_process() -> None:
    assert shop(debug=True).process_count(8) == 1


def test_certificates_cover_all_domains_and_require_a_provider() -> None:
    app = shop(domains=["shop.test"], aliases=["www.shop.test"], tls={"provider": "acme"})
    requests = app_certificates({"shop": app, "blog": shop()})
    assert parse_requests(requests).keys() == {"shop"}
    assert requests["shop"]["domains"] == ["shop.test", "www.shop.test"]
    assert requests["shop"]["origin"] == "tornado_apps.shop.tls"


def test_environment_values_are_converted_to_text() -> None:
    assert shop(env={"DEPTH": 3}).environment == {"DEPTH": "3"}


def test_short_secrets_are_not_masked() -> None:
    app = shop(
        secrets={"KEY": "hunter22", "LEVEL": 1},
        services={"etcd": {"endpoints": ["http://a:1"], "user": "u", "password": "etcd-word"}},
    )
    assert app.sensitive_values == {"hunter22", "etcd-word"}


def test_max_upload_size_is_the_largest_of_all_paths() -> None:
    assert shop(upload_size="2000k").max_upload_size == "2000k"
    assert shop(upload_size="2000k", paths={"/a": {"upload_size": "1g"}, "/b": {"upload_size": "3m"}}).max_upload_size == "1g"


def test_all_domains_includes_aliases() -> None:
    assert shop(domains=["a.example"], aliases=["b.example"]).all_domains == ["a.example", "b.example"]


def test_to_entry_round_trips_through_load() -> None:
    app = shop(static={"path": "www"}, port=8000, secrets={"KEY": "k"})
    assert load({"shop": to_entry(app)})["shop"] == app


def test_slots_use_distinct_ports() -> None:
    assert list(shop(port=8000).ports(cpus=2)) == [8000, 8001, 8002, 8003]


def test_procfile_may_have_a_release_command_that_runs_once() -> None:
    assert not shop(hooks={"before_switch": "migrate"}).may_run_once
    assert shop(hooks={"before_switch": {"command": "migrate", "once": True}}).may_run_once
    assert shop(run={"procfile": "web"}, port=8000).may_run_once
