from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.certbot import Account, hook_path
from ansible_collections.funnel.tornado.plugins.module_utils.certificate_store import (
    SELF_SIGNED_DAYS,
    CertificatesError,
    Keeper,
    Pem,
    Place,
    discard,
    read,
    read_pair,
    self_signed,
)
from ansible_collections.funnel.tornado.plugins.module_utils.certificates import names_of, parse_wanted
from ansible_collections.funnel.tornado.plugins.module_utils.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.status import CertificateState, certificates
from tests.pki import Authority

SERVER = "https://acme.test/dir"


def keeper(base: Path, *, check_mode: bool = False, **entries: dict[str, Any]) -> Keeper:
    contents = {name: Pem(entry.pop("pem"), entry.pop("pem_key")) for name, entry in entries.items() if "pem" in entry}
    return Keeper("app", parse_wanted(entries), [], Account(SERVER), contents, check_mode=check_mode, base=base)


def entry(provider: str, *domains: str) -> dict[str, Any]:
    return {"provider": provider, "domains": list(domains) or ["shop.test"]}


def issued(base: Path, name: str, *domains: str, days: tuple[int, int] = (-1, 90), server: str = SERVER) -> None:
    """Leave what certbot does."""
    lineage = Place("app", name, base).lineage
    leaf = Authority("acme", datetime.now(UTC)).leaf(*domains, days=days)
    for path, text in {lineage.chain: leaf.pem, lineage.key: leaf.key_pem, lineage.configuration: f"server = {server}\n"}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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
    assert found.days(time.time()) == SELF_SIGNED_DAYS - 1
    shown = subprocess.run(["openssl", "x509", "-noout", "-text"], input=pem.chain, capture_output=True, text=True, check=True)
    assert "ASN1 OID: prime256v1" in shown.stdout
    assert "CA:FALSE" in shown.stdout


def test_a_key_that_belongs_to_another_certificate_is_no_pair(tmp_path: Path) -> None:
    place = Place("app", "shop", tmp_path)
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
    place = Place("app", "shop", tmp_path)
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


CERTBOT = """#!/bin/sh
case "$*" in
    *app.bad*) echo "ValueError: Requesting acme/dir: Connection refused"; exit 1 ;;
    *) cp -R "$READY/etc" "$BASE" ;;
esac
"""


def test_one_that_is_not_issued_keeps_no_other_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    issued(ready, "good", "good.test")
    (ready / "certbot").write_text(CERTBOT)
    (ready / "certbot").chmod(0o755)
    base.mkdir()
    for name, value in {"PATH": f"{ready}:{os.environ['PATH']}", "READY": str(ready), "BASE": str(base)}.items():
        monkeypatch.setenv(name, value)
    bad = entry("acme", "bad.test") | {"origin": "tornado_apps.bad.tls"}
    with pytest.raises(CertificatesError) as caught:
        keeper(base, bad=bad, good=entry("acme", "good.test")).issue()
    assert str(caught.value).splitlines() == [
        "tornado_apps.bad.tls: no certificate was issued, and what was served still is: Connection refused. "
        "Right would be another certificates_acme_directory, or a way from this host to that one"
    ]
    assert Place("app", "good", base).chain.is_symlink()
    assert not Place("app", "bad", base).chain.exists()


def test_nothing_is_written_in_a_dry_run(tmp_path: Path) -> None:
    outcome = keeper(tmp_path, check_mode=True, shop=entry("self_signed"), blog=entry("acme", "blog.test")).place()
    assert outcome.changed
    assert outcome.pending == ["blog"]
    assert outcome.after.startswith("shop: shop.test, self-signed\nblog: blog.test, temporary\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_longer_wanted_or_no_longer_certbots_is_left_over(tmp_path: Path) -> None:
    for name in ("shop", "gone"):
        issued(tmp_path, name, "shop.test")
    chains = Place("app", "old", tmp_path).chain
    chains.parent.mkdir(parents=True)
    chains.write_text("")
    chains.with_name("other.set.pem").write_text("")
    assert keeper(tmp_path, shop=entry("acme"))._leftover() == ["gone", "old"]
    assert keeper(tmp_path, shop=entry("self_signed"))._leftover() == ["gone", "old", "shop"]
    assert names_of("app", tmp_path) == ["old"]


def test_with_the_last_certificate_the_hook_goes(tmp_path: Path) -> None:
    shop, blog = Place("app", "shop", tmp_path), Place("app", "blog", tmp_path)
    hook = hook_path("app", tmp_path)
    for path in (hook, shop.chain, shop.key, blog.lineage.configuration):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    discard(shop)
    assert not shop.chain.exists()
    assert not shop.key.exists()
    assert hook.exists(), "another one is renewed"
    blog.lineage.configuration.unlink()
    discard(blog)
    assert not hook.exists()


def test_a_certificate_that_needs_somebody_is_a_problem(tmp_path: Path) -> None:
    def state(provider: str, name: str = "shop") -> CertificateState:
        return next(certificates(parse_wanted({name: entry(provider)}), tmp_path))

    assert state("self_signed").problem == "shop: its certificate is missing, or its key; site.yml makes one"
    written(keeper(tmp_path, shop=entry("self_signed"))._files("shop"))
    assert state("self_signed").problem == ""
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
        parse_wanted({"shop": wanted})
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems
