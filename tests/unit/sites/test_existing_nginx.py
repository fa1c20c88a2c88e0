"""What is kept of the nginx of a host with a past."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import ExistingNginx, existing_nginx

DEBIAN = """\
user www-data;
worker_processes auto;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;
events { worker_connections 768; }
http {
    sendfile on;
    include /etc/nginx/mime.types;
    access_log /var/log/nginx/access.log;
    gzip on;
    include /etc/nginx/conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
}
"""

MANAGED_SITE = "# Ansible managed\n\nupstream shop { include funnel.keepalive; }\n"


def existing(root: Path, text: str) -> ExistingNginx:
    root.mkdir(exist_ok=True)
    (root / "nginx.conf").write_text(text)
    return existing_nginx(root)


def test_the_configuration_of_a_package_needs_nothing_to_be_kept(tmp_path: Path) -> None:
    found = existing(tmp_path, DEBIAN)
    assert (found.kept, found.names, found.replaced, found.refused) == ({}, [], [], "")


def test_own_lines_of_nginx_conf_are_kept(tmp_path: Path) -> None:
    text = DEBIAN.replace(
        "http {", "load_module x.so;\nhttp {\n    log_format timed '$x';\n    keepalive_timeout 11;\n    map $a $b { c d; }"
    )
    found = existing(tmp_path, text.replace("768", "4000"))
    contents = {name: [line for line in file["content"].splitlines() if line[0] != "#"] for name, file in found.kept.items()}
    assert contents == {
        "funnel.main.conf": ["load_module x.so;"],
        "funnel.http.conf": ["log_format timed '$x';", "keepalive_timeout 11;", "map $a $b { c d; }"],
    }
    assert found.names == ["keepalive_timeout"]
    assert found.replaced == ["worker_connections 4000"]


def test_the_file_with_the_process_id_stays_where_a_unit_of_the_host_may_expect_it(tmp_path: Path) -> None:
    found = existing(tmp_path, DEBIAN.replace("/run/nginx.pid", "/run/nginx/nginx.pid"))
    assert found.kept["funnel.main.conf"]["content"].endswith("\npid /run/nginx/nginx.pid;\n")


def test_kept_lines_stay_in_later_runs_and_can_be_edited(tmp_path: Path) -> None:
    kept = "# a comment\nkeepalive_timeout 12;\n"
    (tmp_path / "funnel.http.conf").write_text(kept)
    found = existing(tmp_path, "# Ansible managed\nhttp {\n    log_format funnel 'x';\n    keepalive_timeout 65;\n}\n")
    assert found.kept == {"funnel.http.conf": {"content": kept, "mode": "0600"}}
    assert found.names == ["keepalive_timeout"]


def test_lines_that_sites_of_apps_depend_on_are_not_kept(tmp_path: Path) -> None:
    lines = ["open_file_cache_valid 60s", "access_log /var/log/nginx/access.log other", "variables_hash_max_size 1024"]
    found = existing(tmp_path, DEBIAN.replace("    sendfile on;", "".join(f"    {line};\n" for line in lines)))
    assert found.replaced == lines
    assert found.kept == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEBIAN.replace("www-data", "web"), "nginx.conf:1: nginx runs as web, but the sockets of apps are for www-data"),
        ("http {", "nginx.conf cannot be parsed: it ends within a directive"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in existing(tmp_path, text).refused


def test_sites_of_earlier_versions_are_obsolete_but_those_of_the_host_are_not(tmp_path: Path) -> None:
    sites = tmp_path / "sites-enabled"
    sites.mkdir()
    for name in ("app.shop.extra", "app.shop.0.extra", "app.shop.htpasswd", "app.shop.example.com", "app.example.com", "default"):
        (sites / name).write_text("server {}")
    (sites / "app.shop.conf").write_text(MANAGED_SITE)
    (sites / "app.blog.conf").write_text("# Ansible managed\nserver {}\n")
    obsolete = existing(tmp_path, DEBIAN).obsolete
    assert obsolete == [f"sites-enabled/app.shop.{end}" for end in ("0.extra", "conf", "extra", "htpasswd")]


def test_the_welcome_page_is_obsolete_before_nginx_is_installed(tmp_path: Path) -> None:
    assert existing_nginx(tmp_path).obsolete == ["sites-enabled/default"]


def with_files(root: Path, main: str = DEBIAN, **files: str) -> ExistingNginx:
    """Return what is found beside the nginx.conf of the package, with ``files`` in conf.d."""
    (root / "nginx.conf").write_text(main.replace("/etc/nginx", str(root)))
    named = {str(root / f"conf.d/{name}.conf"): text for name, text in files.items()}
    return existing_nginx(root, files={str(root / "nginx.conf"): (root / "nginx.conf").read_text(), **named})


def test_the_user_of_the_vendors_package_is_replaced_only_if_nothing_is_served_with_it(tmp_path: Path) -> None:
    vendor = DEBIAN.replace("www-data", "nginx")
    assert with_files(tmp_path, vendor).refused == ""
    assert "nginx.conf:1: nginx runs as nginx, but" in with_files(tmp_path, vendor, shop="server { root /srv/www; }").refused


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("listen 80; listen 192.0.2.1:443;", ["[::]:443", "[::]:80"]),
        ("listen 80; listen [::]:80;", []),
        ("listen 80; listen [2001:db8::1]:80;", []),
        ("listen unix:/run/x.sock;", []),
    ],
)
def test_ports_that_others_use_by_ipv4_only_are_found(tmp_path: Path, listen: str, expected: list[str]) -> None:
    assert with_files(tmp_path, shop=f"server {{ {listen} }}").ipv4_only == expected


def test_ports_at_which_nginx_already_listens_by_ipv6_stay(tmp_path: Path) -> None:
    main = "http { log_format funnel x; server { listen [::]:80; } include /etc/nginx/conf.d/*.conf; }"
    assert with_files(tmp_path, main, shop="server { listen 80; }").ipv4_only == []


def test_settings_in_other_files_replace_those_of_the_collection(tmp_path: Path) -> None:
    found = with_files(tmp_path, tuning="gzip on;\ngzip_types a/b;\nlog_format x y;\nserver { root /x; }\n")
    assert found.names == ["gzip", "gzip_types"]
    assert found.refused == ""


@pytest.mark.parametrize("line", ["open_file_cache_valid 60s", "access_log off", "server_names_hash_bucket_size 128"])
def test_settings_in_other_files_that_apps_cannot_be_served_with_are_refused(tmp_path: Path, line: str) -> None:
    refused = with_files(tmp_path, tuning=f"gzip on;\n{line};\n").refused
    assert refused == f"{tmp_path}/conf.d/tuning.conf:2: {line} would apply to all apps; remove it, or move it into a server"


def test_names_of_upstreams_and_zones_have_their_places(tmp_path: Path) -> None:
    text = """\
upstream shop { zone shop_zone 64k; server 192.0.2.1; }
limit_req_zone $a zone=blog:1m rate=1r/s;
proxy_cache_path /x keys_zone=cache:1m;
ssl_session_cache shared:tls:5m;
"""
    file = f"{tmp_path}/conf.d/mine.conf"
    taken = with_files(tmp_path, mine=text).taken
    assert taken == {
        name: f"{file}:{line}" for name, line in [("shop", 1), ("shop_zone", 1), ("blog", 2), ("cache", 3), ("tls", 4)]
    }


def test_it_can_be_sent_to_the_controller(tmp_path: Path) -> None:
    found = existing(tmp_path, DEBIAN)
    assert ExistingNginx.from_data(found.to_data()) == found
