from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account, Lineage, explanation, hook, names

#: What certbot 2.1 and 4.0 print.
REFUSED = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Requesting a certificate for shop.test

Certbot failed to authenticate some domains (authenticator: webroot). The Certificate Authority reported these problems:
  Domain: shop.test
  Type:   unauthorized
  Detail: 203.0.113.7: Invalid response from http://shop.test/.well-known/acme-challenge/Yg: 404

Hint: The Certificate Authority failed to download the temporary challenge files created by Certbot.

Some challenges have failed.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
BOUND = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Unable to register an account with ACME server. Server requires external account binding. Please use --eab-kid and --eab-hmac-key.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
DOWN = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
An unexpected error occurred:
ValueError: Requesting acme.test/dir: Connection refused
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
CONTACT = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Unable to register an account with ACME server. The ACME server believes None is an invalid email address. Please try.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            REFUSED,
            "shop.test: 203.0.113.7: Invalid response from http://shop.test/.well-known/acme-challenge/Yg: 404 (unauthorized). "
            "Right would be names that lead to port 80 of this host",
        ),
        (
            BOUND,
            "Server requires external account binding. Right would be certificates_acme_eab_key_id and "
            "certificates_acme_eab_hmac_key, which the server's operator gives out",
        ),
        (
            DOWN,
            "Connection refused. Right would be another certificates_acme_directory, or a way from this host to that one",
        ),
        (
            CONTACT,
            "The ACME server believes None is an invalid email address. "
            "Right would be an address in certificates_acme_email that the server takes",
        ),
        ("Saving debug log to x\nSomething new.\n", "Something new"),
    ],
)
def test_a_refusal_is_in_the_servers_words_with_what_would_be_right(output: str, expected: str) -> None:
    assert explanation(output) == expected


def test_what_is_secret_of_an_account_is_in_no_option_and_no_text_of_it() -> None:
    account = Account("https://acme.test/dir", "a@b.test", "kid", "hmac-secret")
    assert account.secrets() == "eab-kid = kid\neab-hmac-key = hmac-secret\n"
    assert "hmac-secret" not in " ".join([*account.options(), repr(account)])
    assert Account("https://acme.test/dir").secrets() == ""


def test_lineages_are_known_by_their_prefix(tmp_path: Path) -> None:
    renewal = tmp_path / "etc/letsencrypt/renewal"
    renewal.mkdir(parents=True)
    for name in ("app.shop", "app.blog", "application.x", "www.example.com"):
        (renewal / f"{name}.conf").write_text("[renewalparams]\nserver = https://acme.test/dir\n")
    assert names("app.", tmp_path) == {"shop", "blog"}
    lineage = Lineage("app.shop", tmp_path)
    assert lineage.server() == "https://acme.test/dir"
    assert not lineage.exists(), "nothing has been issued"


@pytest.mark.parametrize(
    ("lineage", "active", "check", "expected", "status"),
    [
        ("app.shop", True, "true", "reload web\n", 0),
        ("app.shop", False, "true", "", 0),
        ("app.shop", True, "false", "", 1),
        ("www.example.com", True, "true", "", 0),
    ],
)
def test_the_hook_reloads_what_runs_and_accepts_its_configuration(
    tmp_path: Path, lineage: str, *, active: bool, check: str, expected: str, status: int
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\nif [ "$1" = reload ]; then echo "$@"; else {str(active).lower()}; fi\n')
    systemctl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RENEWED_LINEAGE": f"/etc/letsencrypt/live/{lineage}"}
    done = subprocess.run(
        ["sh", "-c", hook("app", {"web": [check]})], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (expected, status)
