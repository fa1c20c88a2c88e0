"""Parsing of nginx configuration files."""

from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import (
    Listen,
    NginxSyntaxError,
    ServerBlock,
    block_directives,
    dumped_files,
    parse,
    servers,
)


def test_directives_have_their_arguments_blocks_and_lines() -> None:
    text = """\
# a comment; with { marks }
log_format x "a;b" 'c}d'
    "e\\"f";
map $a $b {
    "~^x\\d{2}$"  1;
    default      ${a}b#c;
}
set $c a\\;b;
content_by_lua_block { local x = {1, 2} }
"""
    found = parse(text)
    assert [(each.name, each.arguments, each.line) for each in found] == [
        ("log_format", ("x", "a;b", "c}d", 'e\\"f'), 2),
        ("map", ("$a", "$b"), 4),
        ("set", ("$c", "a\\;b"), 8),
        ("content_by_lua_block", (), 9),
    ]
    assert [each.normalized for each in found[1].block or ()] == ["~^x\\d{2}$ 1", "default ${a}b#c"]
    assert found[0].text == 'log_format x "a;b" \'c}d\'\n    "e\\"f";'
    assert found[1].text.endswith("b#c;\n}")


@pytest.mark.parametrize("text", ["a {", "a", "}", ";", "a { b }", "a 'b;", "x_by_lua_block { {"])
def test_invalid_syntax_is_reported(text: str) -> None:
    with pytest.raises(NginxSyntaxError):
        parse(text)


def test_servers_of_a_block_are_found_with_file_and_line() -> None:
    dump = """\
nginx: [warn] something
# configuration file /etc/nginx/nginx.conf:
user www-data;
include modules-enabled/*.conf;
http {
    include sites-enabled/*;
    server { listen *:80 default_server; listen [::]:80; server_name a.test b.test; }
}

# configuration file /etc/nginx/sites-enabled/old.test:

server {
    server_name old.test;
    listen 192.0.2.1 ssl;
    listen 443 quic default_server;
}
server { root /x; }
# configuration file /etc/nginx/modules-enabled/stream.conf:
stream { include /etc/nginx/streams/*; }
# configuration file /etc/nginx/streams/db:
server { listen 5432; listen 443 udp reuseport; }
# configuration file /etc/nginx/conf.d/unused.conf:
server { listen 81; }
"""
    found = {
        name: list(servers(block_directives(dumped_files(dump), "/etc/nginx/nginx.conf", name))) for name in ("http", "stream")
    }
    assert found["stream"] == [ServerBlock("/etc/nginx/streams/db", 1, [], [Listen("5432", default=False)])]
    assert found["http"] == [
        ServerBlock("/etc/nginx/sites-enabled/old.test", 2, ["old.test"], [Listen("192.0.2.1:80", default=False)]),
        ServerBlock("/etc/nginx/sites-enabled/old.test", 7, [], [Listen("80", default=False)]),
        ServerBlock(
            "/etc/nginx/nginx.conf",
            5,
            ["a.test", "b.test"],
            [Listen("80", default=True), Listen("[::]:80", default=False)],
        ),
    ]
