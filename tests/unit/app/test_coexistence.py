"""Conflicts of apps with what else a host serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.coexistence import (
    Others,
    Proxy,
    coexistence_problems,
    kept_sites,
    nginx_warnings,
    supervisor_warnings,
    unlisted_warnings,
)
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import Listener, port_conflicts
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import ExistingNginx
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import Listen, ServerBlock
from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import ExistingPrograms

LISTEN = {"nginx_listen": ["80", "[::]:80"], "nginx_listen_tls": ["443"]}
NGINX = Proxy("nginx", LISTEN)
TLS = {"domains": ["shop.test"], "tls": {"provider": "self_signed"}}
APACHE = Listener("0.0.0.0", 80, "apache2", 812, "apache2.service", 0)


def apps(**entries: dict[str, Any]) -> dict[str, App]:
    base = {"source": {"path": "files/sample_app"}, "run": {"app": "web:make_app"}}
    return load({name: {**base, **entry} for name, entry in entries.items()})


def problems(found: dict[str, App], others: Others, proxy: Proxy = NGINX) -> list[str]:
    return list(coexistence_problems(found, others, proxy, cpus=2))


def server(*names: str, listen: str = "80", default: bool = False) -> Others:
    return Others(ExistingNginx(servers=[ServerBlock("/etc/nginx/x", 3, names, [Listen(listen, default)])]))


def test_a_port_of_another_program_is_reported_with_its_unit() -> None:
    assert problems(apps(shop={}), Others(ExistingNginx(), [APACHE])) == [
        "nginx_listen: port 80 is in use by apache2 (pid 812, apache2.service); "
        "systemctl disable --now apache2.service, or choose other ports in nginx_listen"
    ]


@pytest.mark.parametrize(
    "listener",
    [
        Listener("0.0.0.0", 80, "nginx", 9, "nginx.service", 0),
        Listener("0.0.0.0", 8080, "apache2", 812, "apache2.service", 0),
    ],
)
def test_ports_of_nginx_and_other_ports_are_no_conflict(listener: Listener) -> None:
    assert problems(apps(shop={}), Others(ExistingNginx(), [listener])) == []


def test_an_nginx_that_systemd_did_not_start_is_reported() -> None:
    [problem] = problems(apps(shop=TLS), Others(ExistingNginx(), [Listener("0.0.0.0", 443, "nginx", 7, "", 0)]))
    assert problem == "nginx_listen_tls: port 443 is in use by nginx (pid 7); stop it, or choose other ports in nginx_listen_tls"


def test_a_port_for_tls_is_needed_only_by_apps_with_tls() -> None:
    others = Others(ExistingNginx(), [Listener("::", 443, "caddy", 7, "caddy.service", 0)])
    found = (
        "nginx_listen_tls: port 443 is in use by caddy (pid 7, caddy.service); systemctl disable --now caddy.service, or choose "
        "other ports in nginx_listen_tls"
    )
    assert problems(apps(shop=TLS), others) == [found]
    assert problems(apps(shop={}), others) == [f"{found}; no app has tls, so nginx_listen_tls: [] leaves the port to it"]
    assert problems(apps(shop={}), others, Proxy("nginx", LISTEN | {"nginx_listen_tls": []})) == []


@pytest.mark.parametrize(
    ("bound", "conflicts"),
    [
        ("0.0.0.0", ["80", "*:80", "203.0.113.5:80", "0.0.0.0:80", "name.test:80"]),
        ("203.0.113.5", ["80", "*:80", "203.0.113.5:80", "0.0.0.0:80", "name.test:80"]),
        ("10.0.0.5", ["80", "*:80", "0.0.0.0:80", "name.test:80"]),
        ("2001:db8::5", ["[::]:80", "[2001:db8:0::5]:80", "name.test:80"]),
        ("::1", ["[::]:80", "name.test:80"]),
        ("::", ["80", "*:80", "[::]:80", "203.0.113.5:80", "0.0.0.0:80", "[2001:db8:0::5]:80", "name.test:80"]),
    ],
)
def test_only_overlapping_addresses_of_a_port_are_a_conflict(bound: str, conflicts: list[str]) -> None:
    listeners = [Listener(bound, 80, "apache2", 812, "apache2.service", 0)]
    values = ["80", "*:80", "[::]:80", "203.0.113.5:80", "0.0.0.0:80", "[2001:db8:0::5]:80", "name.test:80"]
    others = ["8080", "203.0.113.5:8080", "unix:/run/web:80"]
    assert [value for value in values + others if list(port_conflicts(listeners, {"x": [value]}, "haproxy"))] == conflicts


def test_all_listeners_of_a_port_are_compared() -> None:
    own = Listener("203.0.113.5", 80, "nginx", 9, "nginx.service", 0)
    other = Listener("10.0.0.5", 80, "apache2", 812, "apache2.service", 0)
    for found in ([own, other], [other, own]):
        assert list(port_conflicts(found, {"nginx_listen": ["203.0.113.5:80"]}, "nginx")) == []
        assert len(list(port_conflicts(found, {"nginx_listen": ["80", "[::]:80"]}, "nginx"))) == 1


def test_a_port_of_an_app_may_be_in_use_by_its_own_processes_only() -> None:
    found, held = apps(shop={"port": 8000}), [Listener("0.0.0.0", 8000, "python3", 5, "supervisor.service", 990)]
    assert problems(found, Others(ExistingNginx(), held, ["shop"], {"shop": 990})) == []
    beside = [
        Listener("10.0.0.5", 8000, "apache2", 812, "apache2.service", 0),
        Listener("127.0.0.1", 8000, "python3", 5, "", 990),
    ]
    assert problems(found, Others(ExistingNginx(), beside, ["shop"], {"shop": 990})) == []
    assert problems(found, Others(ExistingNginx(), held)) == [
        "tornado_apps.shop.port: port 8000 is in use by python3 (pid 5, supervisor.service); choose another, or stop it"
    ]


@pytest.mark.parametrize(
    ("entry", "others", "message"),
    [
        ({"domains": ["a.test"]}, server("a.test"), "tornado_apps.shop.domains: a.test is already served by /etc/nginx/x:3"),
        (
            {"domains": ["b.test"], "aliases": ["a.test"]},
            server("a.test", listen="443"),
            "tornado_apps.shop.aliases: a.test is already served by /etc/nginx/x:3",
        ),
        ({}, server("_"), "tornado_apps.shop.domains: is missing, and /etc/nginx/x:3 already serves all other names"),
        ({}, server("a.test", default=True), "tornado_apps.shop.domains: is missing, and /etc/nginx/x:3"),
    ],
)
def test_names_that_another_site_serves_are_reported(entry: dict[str, Any], others: Others, message: str) -> None:
    [problem] = problems(apps(shop=entry), others)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("entry", "others"),
    [
        ({"domains": ["b.test"]}, server("a.test", default=True)),
        ({"domains": ["a.test"]}, server("a.test", listen="8080")),
        ({}, server("a.test")),
    ],
)
def test_sites_with_other_names_or_addresses_are_no_conflict(entry: dict[str, Any], others: Others) -> None:
    assert problems(apps(shop=entry), others) == []


def test_an_address_of_a_stream_is_reported() -> None:
    stream = ServerBlock("/etc/nginx/stream.conf", 4, (), [Listen("443", default=False)])
    assert problems(apps(shop={}), Others(ExistingNginx(streams=[stream]))) == [
        "nginx_listen_tls: 443 is in use by the stream at /etc/nginx/stream.conf:4; choose other addresses in nginx_listen_tls"
    ]


def test_an_upstream_with_the_name_of_an_app_is_reported() -> None:
    taken = {"shop": "/etc/nginx/conf.d/x.conf:1", "other": "/etc/nginx/conf.d/x.conf:2"}
    assert problems(apps(shop={}), Others(ExistingNginx(taken=taken))) == [
        "tornado_apps.shop: /etc/nginx/conf.d/x.conf:1 has an upstream or a zone of this name; rename it"
    ]


def test_a_program_with_the_name_of_a_slot_is_reported() -> None:
    programs = ExistingPrograms({"shop-a": "/etc/x.conf", "shop-b.mail": "/etc/x.conf", "blog-a": "/etc/y", "shop": "/etc/y"})
    assert problems(apps(shop={}), Others(ExistingNginx(), programs=programs)) == [
        f"tornado_apps.shop: /etc/x.conf has a program {name}, the name of a slot of this app; rename one of them"
        for name in ("shop-a", "shop-b.mail")
    ]


def test_sections_of_supervisord_conf_that_would_be_lost_are_refused() -> None:
    programs = ExistingPrograms(lost=["[program:x]", "[include] /opt/*.ini"])
    found = problems(apps(shop={}), Others(ExistingNginx(), programs=programs))
    start = "/etc/supervisor/supervisord.conf has"
    end = "but includes only /etc/supervisor/conf.d/*.conf in future"
    assert found == [
        f"{start} [program:x], {end}; move it to a file there",
        f"{start} [include] /opt/*.ini, {end}; link its files in /etc/supervisor/conf.d, as *.conf",
    ]


def test_a_program_of_supervisord_that_requires_a_capability_is_reported() -> None:
    others = Others(
        ExistingNginx(),
        [
            *(Listener(address, 443, "node", 7, "supervisor.service", 0) for address in ("0.0.0.0", "::")),
            Listener("0.0.0.0", 53, "named", 8, "named.service", 0),
        ],
    )
    found = list(coexistence_problems(apps(shop={}), others, Proxy("nginx", {}), cpus=2))
    assert found == [
        "port 443 is in use by node (pid 7, supervisor.service), which requires the capability CAP_NET_BIND_SERVICE; "
        "add CapabilityBoundingSet to supervisor_hardening_except"
    ]
    assert list(coexistence_problems({}, replace(others, unprivileged_port=443), Proxy("nginx", {}), cpus=2)) == []
    unrestricted = ["CapabilityBoundingSet"]
    assert list(coexistence_problems({}, others, Proxy("nginx", {}), cpus=2, unrestricted=unrestricted)) == []


def test_a_masked_service_is_reported() -> None:
    assert problems(apps(shop={}), Others(ExistingNginx(), masked=["nginx", "supervisor"]), Proxy("haproxy", {})) == [
        "supervisor.service is masked, and so cannot start; systemctl unmask supervisor.service allows it"
    ]


def test_restrictions_of_programs_of_others_are_reported_once() -> None:
    [warning] = supervisor_warnings(ExistingPrograms({"mine": "/etc/x.conf", "jobs": "/etc/x.conf"}), "web1")
    assert "supervisord runs jobs, mine without the privileges" in warning
    assert list(supervisor_warnings(ExistingPrograms({"mine": "/etc/x.conf"}, managed=True), "web1")) == []


def live(own: dict[str, Sequence[str]], *names: str) -> Others:
    return Others(ExistingNginx(own=own), live=names)


def test_an_app_outside_the_inventory_keeps_its_site_and_is_reported() -> None:
    others, found = live({"app.shop": ["a.test"], "app.blog": ["b.test"]}, "blog", "shop"), apps(shop={"domains": ["a.test"]})
    assert kept_sites(found, others) == ["blog"]
    assert problems(found, others) == []
    assert list(unlisted_warnings(found, others, "web1")) == [
        "tornado_apps has no app blog, which is live on web1; it stays as it is; run remove.yml -e app=blog to remove it"
    ]


@pytest.mark.parametrize(("names", "entry"), [(["a.test"], {"domains": ["a.test"]}), (['""', "~^"], {})])
def test_a_renamed_app_takes_the_names_of_its_predecessor(names: list[str], entry: dict[str, Any]) -> None:
    others = live({"app.old": names}, "old")
    assert kept_sites(apps(new=entry), others) == []
    assert "takes its domains" in next(unlisted_warnings(apps(new=entry), others, "web1"))


def test_an_app_that_would_vanish_from_a_shared_configuration_is_refused() -> None:
    sites = {"app.shop": ["api", "shop"], "app.other": ["mounted", "other"]}
    found = Others(ExistingNginx(own={"app.shop": [], "app.other": ["b.test"]}, apps=sites), live=["api", "mounted", "other"])
    [mounted] = problems(apps(shop={"domains": ["a.test"]}), found)
    assert mounted.endswith("in the site of another app; add its entry, or run remove.yml -e app=api")

    balanced = Others(ExistingNginx(), live=["api", "plain"], balanced=["api", "shop"])
    [problem] = problems(apps(shop={}), balanced, Proxy("haproxy", {"haproxy_listen": ["80"]}))
    assert problem.startswith(
        "tornado_apps has no app api, which is live on this host, and this run would remove it from haproxy"
    )


def test_a_configuration_that_cannot_be_kept_is_refused() -> None:
    assert problems(apps(shop={}), Others(ExistingNginx(refused="why"))) == ["why"]


def test_another_supervisord_is_reported_and_refused_if_it_has_the_socket_of_the_apps() -> None:
    [warning] = supervisor_warnings(ExistingPrograms(other_socket="/run/pip.sock"), "web1")
    assert warning.startswith("web1: supervisorctl controls the supervisord of /etc/supervisord.conf; for that of the apps, use")
    assert problems(apps(shop={}), Others(ExistingNginx(), programs=ExistingPrograms(other_socket="/run/pip.sock"))) == []
    managed = ExistingPrograms(managed=True, other_socket="/run/supervisor.sock")
    assert problems(apps(shop={}), Others(ExistingNginx(), programs=managed)) == [], "it does not use the socket, then"
    [problem] = problems(apps(shop={}), Others(ExistingNginx(), programs=ExistingPrograms(other_socket="/run/supervisor.sock")))
    assert problem.startswith(
        "/etc/supervisord.conf has the socket /run/supervisor.sock, which the supervisord of the apps needs"
    )


def test_replaced_lines_and_errors_of_nginx_are_reported() -> None:
    found = ExistingNginx(replaced=["worker_connections 4000"], error="unknown directive", ipv4_only=["[::]:80", "[::]:8080"])
    assert [warning.partition(":")[2] for warning in nginx_warnings(found, NGINX, "web1")] == [
        " nginx does not listen on [::]:80, because its other sites listen at that port by IPv4 only, and would not answer "
        "there; add a listen directive for [::]:80 to these sites to have all sites and apps there",
        " these lines of nginx.conf are replaced: worker_connections 4000; set nginx_* variables instead",
        " nginx refuses its present configuration: unknown directive",
    ]
