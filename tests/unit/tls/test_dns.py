from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.tls.acme import AcmeClient, acme_paths
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import CREDENTIALS, DnsChallenge, parse_dns

UPDATE = {"server": "192.0.2.53", "name": "funnel.", "secret": "c2VjcmV0", "port": 53}


def parsed(plugin: str, credentials: dict[str, Any], propagation: int | None = None) -> DnsChallenge:
    found = parse_dns({"plugin": plugin, "credentials": credentials, "propagation": propagation})
    assert found
    return found


def test_every_plugin_has_its_credentials_as_data() -> None:
    assert set(get_args(get_type_hints(DnsChallenge)["plugin"])) == CREDENTIALS.keys()


def test_credentials_file_has_the_prefixed_options_and_the_command_line_no_secret() -> None:
    dns = parsed("rfc2136", UPDATE, 5)
    assert dns.content().splitlines() == [
        "dns_rfc2136_server = 192.0.2.53",
        "dns_rfc2136_name = funnel.",
        "dns_rfc2136_secret = c2VjcmV0",
        "dns_rfc2136_port = 53",
    ]
    assert dns.options("app") == [
        *("--authenticator", "dns-rfc2136", "--dns-rfc2136-credentials", "/etc/letsencrypt/funnel/app.rfc2136.ini"),
        *("--dns-rfc2136-propagation-seconds", "5"),
    ]


def test_google_takes_json_and_route53_a_file_of_aws() -> None:
    account = {"type": "service_account", "client_email": "a@b", "private_key": "-----BEGIN\n", "token_uri": "https://c"}
    assert json.loads(parsed("google", account).content()) == account
    keys = parsed("route53", {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x"})
    assert keys.content() == "[default]\naws_access_key_id = AKIA\naws_secret_access_key = x\n"
    assert keys.environment("app") == {"AWS_SHARED_CREDENTIALS_FILE": "/etc/letsencrypt/funnel/app.route53.ini"}
    assert parsed("route53", {}).environment("app") == {}, "the instance has a role"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"plugin": "bind"}, "certificates_acme_dns.plugin: must be "),
        (
            {"plugin": "rfc2136", "credentials": {"server": "192.0.2.53", "name": "funnel."}},
            "certificates_acme_dns.credentials.secret: is missing; rfc2136 requires server, name, secret",
        ),
        (
            {"plugin": "rfc2136", "credentials": UPDATE | {"sekret": "hidden-value"}},
            "certificates_acme_dns.credentials.sekret: unknown key of rfc2136; known are ",
        ),
        (
            {"plugin": "digitalocean", "credentials": {"token": "hidden-value\nx = y"}},
            "certificates_acme_dns.credentials.token: must be one line",
        ),
        ({"plugin": "digitalocean", "credentials": {"token": ["hidden-value"]}}, "certificates_acme_dns.credentials.token: "),
        (
            {"plugin": "cloudflare"},
            "certificates_acme_dns.credentials: is empty; cloudflare requires api_token or api_key",
        ),
    ],
)
def test_mistakes_are_reported_without_the_values(value: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidDataError) as caught:
        parse_dns(value)
    assert caught.value.problems[0].startswith(problem)
    assert "hidden-value" not in str(caught.value)


def test_credentials_are_written_only_for_certificates_that_need_them(tmp_path: Path) -> None:
    client = AcmeClient(Account("https://acme.test/dir"), dns=parsed("rfc2136", UPDATE), set_name="app", base=tmp_path)
    by_dns = CertificateRequest(provider="acme", domains=["*.shop.test"], challenge="dns")
    by_http = CertificateRequest(provider="acme", domains=["shop.test"])
    assert [file.path for file in client.files([by_http]) if file.secret] == []
    [file] = [file for file in client.files([by_http, by_dns]) if file.secret]
    path = tmp_path / "etc/letsencrypt/funnel/app.rfc2136.ini"
    assert (file.path, file.mode, file.secret) == (str(path), 0o600, True)
    path.parent.mkdir(parents=True)
    path.write_bytes(file.content)
    assert acme_paths("app", tmp_path) == [path]
    assert acme_paths("certificates", tmp_path) == []
