from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import (
    Account,
    Lineage,
    explain_failure,
    lineage_names,
    render_hook,
    retry_after,
    visible_output,
)

#: Output of certbot 2.1 and 4.0.
CHALLENGE_FAILED = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Requesting a certificate for shop.test

Certbot failed to authenticate some domains (authenticator: webroot). The Certificate Authority reported these problems:
  Domain: shop.test
  Type:   unauthorized
  Detail: 203.0.113.7: Invalid response from http://shop.test/.well-known/acme-challenge/Yg: 404

Hint: The Certificate Authority failed to download the temporary challenge files created by Certbot.

Some challenges have failed.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
BINDING_REQUIRED = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Unable to register an account with ACME server. Server requires external account binding. Please use --eab-kid and --eab-hmac-key.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
SERVER_DOWN = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
An unexpected error occurred:
ValueError: Requesting acme.test/dir: Connection refused
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
INVALID_CONTACT = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Unable to register an account with ACME server. The ACME server believes None is an invalid email address. Please try.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""
REJECTED = """Saving debug log to /var/log/letsencrypt/letsencrypt.log
Requesting a certificate for shop.test and blocked.test
An unexpected error occurred:
Order included an identifier for which issuance is forbidden by policy: blocked.test
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /var/log/letsencrypt/letsencrypt.log.
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            CHALLENGE_FAILED,
            "shop.test: 203.0.113.7: Invalid response from http://shop.test/.well-known/acme-challenge/Yg: 404 (unauthorized). "
            "To fix: make these names resolve to this host and allow connections to its port 80",
        ),
        (
            BINDING_REQUIRED,
            "Server requires external account binding. To fix: set certificates_acme_eab_key_id and "
            "certificates_acme_eab_hmac_key, which the operator of the server provides",
        ),
        (
            SERVER_DOWN,
            "Connection refused. To fix: set another certificates_acme_directory, or allow this host to connect to the server",
        ),
        (
            INVALID_CONTACT,
            "The ACME server believes None is an invalid email address. "
            "To fix: set certificates_acme_email to an address that the server accepts",
        ),
        (
            REJECTED,
            "Order included an identifier for which issuance is forbidden by policy: blocked.test. "
            "To fix: remove the names that the server does not certify, or use another server",
        ),
        ("Saving debug log to x\nSomething new.\n", "Something new"),
    ],
)
def test_explain_failure_returns_the_server_error_with_advice(output: str, expected: str) -> None:
    assert explain_failure(output) == expected


def test_account_secrets_appear_in_neither_options_nor_repr() -> None:
    account = Account("https://acme.test/dir", "a@b.test", "kid", "hmac-secret")
    assert account.secrets() == "eab-kid = kid\neab-hmac-key = hmac-secret\n"
    assert "hmac-secret" not in " ".join([*account.options(), repr(account)])
    assert Account("https://acme.test/dir").secrets() == ""


def test_lineage_names_are_selected_by_prefix(tmp_path: Path) -> None:
    renewal = tmp_path / "etc/letsencrypt/renewal"
    renewal.mkdir(parents=True)
    for name in ("app.shop", "app.blog", "application.x", "www.example.com"):
        (renewal / f"{name}.conf").write_text("[renewalparams]\nserver = https://acme.test/dir\n")
    assert lineage_names("app.", tmp_path) == {"shop", "blog"}


@pytest.mark.parametrize(
    ("lineage", "active", "check", "expected", "status"),
    [
        ("app.shop", True, "true", "reload web\n", 0),
        ("app.shop", False, "true", "", 0),
        ("app.shop", True, "false", "", 1),
        ("www.example.com", True, "true", "", 0),
    ],
)
def test_hook_reloads_active_services_whose_configuration_check_passes(
    tmp_path: Path, lineage: str, *, active: bool, check: str, expected: str, status: int
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\nif [ "$1" = reload ]; then echo "$@"; else {str(active).lower()}; fi\n')
    systemctl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RENEWED_LINEAGE": f"/etc/letsencrypt/live/{lineage}"}
    finished = subprocess.run(
        ["sh", "-c", render_hook("app", {"web": [check]})], env=environment, capture_output=True, text=True, check=False
    )
    assert (finished.stdout, finished.returncode) == (expected, status)


@pytest.mark.parametrize(("days", "expected"), [(90, "# renew_before_expiry = 30 days"), (45, "360 hours"), (6, "72 hours")])
def test_short_lived_certificates_are_renewed_by_the_share_of_their_lifetime(tmp_path: Path, days: int, expected: str) -> None:
    lineage = Lineage("app.shop", tmp_path)
    lineage.configuration.parent.mkdir(parents=True)
    lineage.configuration.write_text("# renew_before_expiry = 30 days\nversion = 2.1.0\n")
    for _renewal in range(2):
        lineage.schedule_renewal(days * 86_400)
    first, second = lineage.configuration.read_text().splitlines()
    assert first in (expected, f"renew_before_expiry = {expected}")
    assert second == "version = 2.1.0"


LOG = """2026-11-28 19:00:00,000:DEBUG:acme.client:Received response:
HTTP 201
Retry-After: 3
2026-11-28 19:00:01,000:DEBUG:acme.client:Received response:
HTTP 429
Retry-After: 7200
"""


@pytest.mark.parametrize(
    ("output", "seconds"), [("urn:ietf:params:acme:error:rateLimited :: too many certificates", 7200), ("Connection refused", 0)]
)
def test_rate_limited_order_waits_as_long_as_the_server_asks(tmp_path: Path, output: str, seconds: float) -> None:
    log = tmp_path / "letsencrypt.log"
    assert retry_after(output, log) == 0
    log.write_text(LOG)
    assert retry_after(output, log) == seconds


def test_control_characters_of_a_server_are_escaped() -> None:
    output = "  Domain: shop.test\n  Type:   unauthorized\n  Detail: 403: \x1b[2Jall good\n"
    assert explain_failure(output).startswith(r"shop.test: 403: \x1b[2Jall good (unauthorized).")


def test_server_cannot_forbid_orders_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "letsencrypt.log"
    log.write_text(LOG.replace("7200", "9" * 400))
    assert retry_after("rateLimited", log) == 7 * 86_400


#: Log of certbot 2.1 on Debian 12.
HIDDEN_LOG = """acme.messages.Error: urn:ietf:params:acme:error:malformed :: an earlier order
acme.messages.Error: urn:ietf:params:acme:error:rateLimited :: There were too many requests :: too many certificates for shop.test

During handling of the above exception, another exception occurred:
AttributeError: can't set attribute
"""


def test_error_that_certbot_hides_is_read_from_its_log(tmp_path: Path) -> None:
    hidden, log = "An unexpected error occurred:\nAttributeError: can't set attribute\n", tmp_path / "letsencrypt.log"
    assert visible_output(hidden, log) == hidden
    log.write_text(HIDDEN_LOG + LOG)
    output = visible_output(hidden, log)
    assert explain_failure(output) == (
        "urn:ietf:params:acme:error:rateLimited :: There were too many requests :: too many certificates for shop.test. "
        "To fix: wait; use certificates_acme_staging: true for tests in the meantime"
    )
    assert retry_after(output, log) == 7200
    assert visible_output(SERVER_DOWN, log) == SERVER_DOWN
