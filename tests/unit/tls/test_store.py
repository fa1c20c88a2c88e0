from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import CertificateState, certificates
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account, hook_path
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import installed_names, parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import (
    SELF_SIGNED_DAYS,
    CertificateFiles,
    CertificatesError,
    CertificateStore,
    Pem,
    read,
    read_pair,
    remove_certificate,
    self_signed,
)
from tests.support.pki import Authority

SERVER = "https://acme.test/dir"
ROLE = Path(__file__).parents[3] / "roles/certificates"


def keeper(base: Path, *, check_mode: bool = False, **entries: dict[str, Any]) -> CertificateStore:
    contents = {name: Pem(entry.pop("pem"), entry.pop("pem_key")) for name, entry in entries.items() if "pem" in entry}
    return CertificateStore("app", parse_requests(entries), [], Account(SERVER), contents, check_mode=check_mode, base=base)


def entry(provider: str, *domains: str) -> dict[str, Any]:
    return {"provider": provider, "domains": list(domains) or ["shop.test"]}


def issued(
    base: Path,
    name: str,
    *domains: str,
    days: tuple[int, int] = (-1, 90),
    server: str = SERVER,
    asked: Sequence[str] | None = None,
) -> None:
    """Leave what certbot does, of a certificate that it was ``asked`` for with other names than it has."""
    lineage = CertificateFiles("app", name, base).lineage
    leaf = Authority("acme", datetime.now(UTC)).leaf(*domains, days=days)
    asked = "".join(f"{domain} = /var/lib/acme-challenges\n" for domain in (domains if asked is None else asked))
    configuration = f"[renewalparams]\nserver = {server}\n[[webroot_map]]\n{asked}"
    for path, text in {lineage.chain: leaf.pem, lineage.key: leaf.key_pem, lineage.configuration: configuration}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def program(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Put a shell script in the place of a program of the host."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}")
    (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def written(files: list[File]) -> None:
    for file in files:
        path = Path(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if file.is_link:
            path.symlink_to(file.content.decode())
        else:
            path.write_bytes(file.content)


def test_a_self_signed_certificate_is_for_its_names_and_as_long_as_browsers_take(tmp_path: Path) -> None:
    pem = self_signed("app.shop", ["shop.test", "*.shop.test"])
    (tmp_path / "chain").write_text(pem.chain)
    found = read(tmp_path / "chain")
    assert found
    assert found.names == {"shop.test", "*.shop.test"}
    assert found.self_signed
    assert found.days_left(time.time()) == SELF_SIGNED_DAYS - 1
    shown = subprocess.run(["openssl", "x509", "-noout", "-text"], input=pem.chain, capture_output=True, text=True, check=True)
    assert "ASN1 OID: prime256v1" in shown.stdout
    assert "CA:FALSE" in shown.stdout


def test_a_key_that_belongs_to_another_certificate_is_no_pair(tmp_path: Path) -> None:
    place = CertificateFiles("app", "shop", tmp_path)
    place.chain.parent.mkdir(parents=True)
    pem, other = self_signed("app.shop", ["shop.test"]), self_signed("app.shop", ["shop.test"])
    place.chain.write_text(pem.chain)
    assert read_pair(place) is None
    place.key.write_text(other.key)
    assert read_pair(place) is None
    place.key.write_text(pem.key)
    assert read_pair(place)


def test_a_self_signed_certificate_stays_until_its_names_change_or_its_last_month(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keeper(tmp_path, shop=entry("self_signed"))._files("shop")
    written(first)
    assert keeper(tmp_path, shop=entry("self_signed"))._files("shop") == first
    assert keeper(tmp_path, shop=entry("self_signed", "other.test"))._files("shop") != first
    soon = time.time() + (SELF_SIGNED_DAYS - 20) * 86_400
    monkeypatch.setattr(time, "time", lambda: soon)
    assert keeper(tmp_path, shop=entry("self_signed"))._files("shop") != first


def test_until_one_is_issued_what_was_there_stays(tmp_path: Path) -> None:
    leaf = Authority("own", datetime.now(UTC)).leaf("shop.test")
    own = keeper(tmp_path, shop={**entry("files"), "certificate": "c", "key": "k", "pem": leaf.pem, "pem_key": leaf.key_pem})
    written(own._files("shop"))
    acme = keeper(tmp_path, shop=entry("acme"))
    assert acme._files("shop") == own._files("shop")
    assert acme._is_pending("shop")
    issued(tmp_path, "shop", "shop.test")
    place = CertificateFiles("app", "shop", tmp_path)
    links = acme._files("shop")
    assert [(file.path, file.content.decode(), file.is_link) for file in links] == [
        (str(place.chain), str(place.lineage.chain), True),
        (str(place.key), str(place.lineage.key), True),
    ]
    assert not acme._is_pending("shop")


@pytest.mark.parametrize(
    ("changes", "pending"),
    [
        ({}, False),
        ({"server": "https://staging.test/dir"}, True),
        ({"days": (-90, -1)}, True),
    ],
)
def test_the_server_is_asked_again_only_when_something_is_another(
    tmp_path: Path, changes: dict[str, Any], *, pending: bool
) -> None:
    issued(tmp_path, "shop", "shop.test", "www.shop.test", **changes)
    assert keeper(tmp_path, shop=entry("acme", "www.shop.test", "shop.test"))._is_pending("shop") is pending
    assert keeper(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop"), "the names are other ones"


def test_names_that_the_server_adds_are_no_reason_to_ask_again(tmp_path: Path) -> None:
    issued(tmp_path, "shop", "shop.test", "www.shop.test", asked=["shop.test"])
    assert not keeper(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop")
    issued(tmp_path, "shop", "www.shop.test", asked=["shop.test"])
    assert keeper(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop"), "a name that was asked for is not in it"


CERTBOT = """
case "$*" in
    *app.bad*) echo "ValueError: Requesting acme/dir: Connection refused"; exit 1 ;;
    *) cp -R "$READY/etc" "$BASE" ;;
esac
"""


def test_one_that_is_not_issued_keeps_no_other_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    issued(ready, "good", "good.test")
    program(ready, monkeypatch, "certbot", CERTBOT)
    base.mkdir()
    for name, value in {"READY": str(ready), "BASE": str(base)}.items():
        monkeypatch.setenv(name, value)
    bad = entry("acme", "bad.test") | {"origin": "tornado_apps.bad.tls"}
    with pytest.raises(CertificatesError) as caught:
        keeper(base, bad=bad, good=entry("acme", "good.test")).issue()
    assert str(caught.value).splitlines() == [
        "tornado_apps.bad.tls: no certificate was issued, and what was served still is: Connection refused. "
        "Right would be another certificates_acme_directory, or a way from this host to that one"
    ]
    assert CertificateFiles("app", "good", base).chain.is_symlink()
    assert not CertificateFiles("app", "bad", base).chain.exists()


def test_whatever_the_umask_nginx_reaches_the_answers_to_challenges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, "certbot", "exit 1")
    before = os.umask(0o077)
    try:
        with pytest.raises(CertificatesError):
            keeper(tmp_path / "base", shop=entry("acme")).issue()
    finally:
        os.umask(before)
    assert (tmp_path / "base/var/lib/acme-challenges").stat().st_mode & 0o777 == 0o755


#: A service that runs since the host was booted, and cannot be reloaded.
STUBBORN = """
case $1 in
    show) printf '%s\\n' LoadState=loaded ActiveState=active UnitFileState=enabled MainPID=0 \\
        ActiveEnterTimestampMonotonic=0 StateChangeTimestampMonotonic=0 ;;
    *) echo "address in use"; exit 1 ;;
esac
"""


def test_what_certbot_has_replaced_is_not_said_to_be_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, "systemctl", STUBBORN)
    issued(tmp_path, "shop", "shop.test")
    shop = replace(keeper(tmp_path, shop=entry("acme")), services=["web"])
    written(shop._files("shop"))
    with pytest.raises(CertificatesError, match="address in use") as caught:
        shop.issue()
    assert str(caught.value).splitlines()[-1] == "web: the certificates of before are served until it can be reloaded."


#: certbot.timer is stopped until it is started.
SYSTEMCTL = """
case $1 in
    is-*) test -e "$STARTED" ;;
    *) echo "$@" >> "$STARTED" ;;
esac
"""


def test_what_is_issued_is_renewed_even_if_somebody_has_stopped_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, "systemctl", SYSTEMCTL)
    started = tmp_path / "started"
    monkeypatch.setenv("STARTED", str(started))
    assert keeper(tmp_path, shop=entry("self_signed"))._start_timer() == []
    assert keeper(tmp_path, shop=entry("acme"), check_mode=True)._start_timer() == ["certbot.timer"]
    assert not started.exists()
    assert keeper(tmp_path, shop=entry("acme"))._start_timer() == ["certbot.timer"]
    assert started.read_text() == "enable --now certbot.timer\n"
    assert keeper(tmp_path, shop=entry("acme"))._start_timer() == []


def test_nothing_is_written_in_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, "systemctl", "exit 1")
    base = tmp_path / "base"
    base.mkdir()
    outcome = keeper(base, check_mode=True, shop=entry("self_signed"), blog=entry("acme", "blog.test")).place()
    assert outcome.changed
    assert outcome.pending == ["blog"]
    assert outcome.after.startswith("shop: shop.test, self-signed\nblog: blog.test, temporary\n")
    assert outcome.after.endswith("certbot.timer\n")
    assert list(base.iterdir()) == []


def test_what_is_no_longer_wanted_or_no_longer_certbots_is_left_over(tmp_path: Path) -> None:
    for name in ("shop", "gone"):
        issued(tmp_path, name, "shop.test")
    chains = CertificateFiles("app", "old", tmp_path).chain
    chains.parent.mkdir(parents=True)
    chains.write_text("")
    chains.with_name("other.set.pem").write_text("")
    assert keeper(tmp_path, shop=entry("acme"))._leftover() == ["gone", "old"]
    assert keeper(tmp_path, shop=entry("self_signed"))._leftover() == ["gone", "old", "shop"]
    assert installed_names("app", tmp_path) == ["old"]


def test_with_the_last_certificate_the_hook_goes(tmp_path: Path) -> None:
    shop, blog = CertificateFiles("app", "shop", tmp_path), CertificateFiles("app", "blog", tmp_path)
    hook = hook_path("app", tmp_path)
    for path in (hook, shop.chain, shop.key, blog.lineage.configuration):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_certificate(shop)
    assert not shop.chain.exists()
    assert not shop.key.exists()
    assert hook.exists(), "another one is renewed"
    blog.lineage.configuration.unlink()
    remove_certificate(blog)
    assert not hook.exists()


def test_a_certificate_that_needs_somebody_is_a_problem(tmp_path: Path) -> None:
    def state(provider: str, *domains: str, read_at: float = time.time() + 60) -> CertificateState:
        return next(certificates(parse_requests({"shop": entry(provider, *domains)}), "app", {"nginx": read_at}, tmp_path))

    assert state("self_signed").problem == "shop: its certificate is missing, or its key; site.yml makes one"
    written(keeper(tmp_path, shop=entry("self_signed"))._files("shop"))
    assert state("self_signed").problem == ""
    assert state("self_signed", "shop.test", "www.shop.test").problem == (
        "shop: its certificate is not for www.shop.test; site.yml says why there is no other"
    )
    assert state("self_signed", read_at=time.time() - 60).problem.startswith("shop: nginx still serves the certificate of before")
    assert state("acme").problem == "shop: its certificate is a temporary one; site.yml says why none was issued"
    issued(tmp_path, "shop", "shop.test", days=(-80, 10))
    written(keeper(tmp_path, shop=entry("acme"))._files("shop"))
    assert state("acme").kind == "acme"
    assert "in 9 days; it should have been renewed" in state("acme").problem


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"provider": "acme", "domains": []}, "certificates_wanted.shop: needs domains, which the certificate is for"),
        (entry("acme", "*.shop.test"), "certificates_wanted.shop.provider: acme proves each name over HTTP, which *.shop.test"),
        (
            entry("acme", "shop test"),
            "certificates_wanted.shop.domains[0]: must be a domain name in lower case; found 'shop test'",
        ),
        ({**entry("acme"), "key": "k"}, "certificates_wanted.shop.key: goes with provider: files; this is acme"),
        (entry("files"), "certificates_wanted.shop.certificate: is missing; provider: files takes certificate and key"),
        (entry("off"), 'certificates_wanted.shop.provider: must be "self_signed" or "files" or "acme"; found \'off\''),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_would_be_right(wanted: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidDataError) as caught:
        parse_requests({"shop": wanted})
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "https://acme-v02.api.letsencrypt.org/directory"),
        ({"certificates_acme_staging": True}, "https://acme-staging-v02.api.letsencrypt.org/directory"),
    ],
)
def test_lets_encrypt_is_asked_and_its_staging_servers_on_request(variables: dict[str, Any], expected: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    templar = Templar(loader=DataLoader(), variables=defaults | variables)
    assert templar.template(trust_as_template(defaults["certificates_acme_directory"])) == expected
