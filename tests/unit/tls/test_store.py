from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import CertificateStatus, certificate_statuses
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot, issuance, renewal_information
from ansible_collections.funnel.tornado.plugins.module_utils.tls.acme import AcmeClient
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account, hook_path
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import installed_names, parse_requests, used_names
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.module_utils.tls.issuance import Order, Record, load, record_path, save
from ansible_collections.funnel.tornado.plugins.module_utils.tls.lineage_files import Pem
from ansible_collections.funnel.tornado.plugins.module_utils.tls.renewal_information import Suggestion
from ansible_collections.funnel.tornado.plugins.module_utils.tls.renewal_information import save as save_suggestion
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import (
    SELF_SIGNED_DAYS,
    CertificateFiles,
    CertificatesError,
    CertificateStore,
    remove_certificate,
    self_signed,
    unused_names,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.x509 import read, read_pair
from tests.support.pki import Authority, Leaf

SERVER = "https://acme.test/dir"
ROLE = Path(__file__).parents[3] / "roles/certificates"


def make_store(base: Path, *, check_mode: bool = False, **entries: dict[str, Any]) -> CertificateStore:
    contents = {name: Pem(entry.pop("pem"), entry.pop("pem_key")) for name, entry in entries.items() if "pem" in entry}
    client = AcmeClient(Account(SERVER), self_check=False, base=base)
    return CertificateStore("app", parse_requests(entries), [], client, contents, check_mode=check_mode, base=base)


def entry(provider: str, *domains: str) -> dict[str, Any]:
    return {"provider": provider, "domains": list(domains) or ["shop.test"]}


#: The renewal configuration of certbot.
CONFIGURATION = """version = 2.1.0
archive_dir = /etc/letsencrypt/archive/NAME
cert = /etc/letsencrypt/live/NAME/cert.pem
privkey = /etc/letsencrypt/live/NAME/privkey.pem
chain = /etc/letsencrypt/live/NAME/chain.pem
fullchain = /etc/letsencrypt/live/NAME/fullchain.pem
[renewalparams]
account = 0123456789abcdef
server = https://acme.test/dir
authenticator = standalone
"""


def add_generation(lineage: certbot.Lineage, leaf: Leaf, issuer: str, number: int) -> None:
    """Create the files of certbot for a new or a renewed certificate."""
    archive = lineage.base / "etc/letsencrypt/archive" / lineage.name
    for directory in (archive, lineage.chain.parent, lineage.configuration.parent):
        directory.mkdir(parents=True, exist_ok=True)
    lineage.configuration.write_text(CONFIGURATION.replace("NAME", lineage.name))
    texts = {"cert": leaf.pem, "chain": issuer, "fullchain": leaf.pem + issuer, "privkey": leaf.key_pem}
    for kind, text in texts.items():
        (archive / f"{kind}{number}.pem").write_text(text)
        link = lineage.chain.with_name(f"{kind}.pem")
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/{lineage.name}/{kind}{number}.pem")


def create_issued(
    base: Path,
    name: str,
    *domains: str,
    days: tuple[int, int] = (-1, 90),
    server: str = SERVER,
    requested: Sequence[str] | None = None,
) -> None:
    """Create the files of an issued certificate; ``requested`` are the names that it was ordered with, if they differ."""
    lineage = CertificateFiles("app", name, base).lineage
    authority = Authority("acme", datetime.now(UTC))
    add_generation(lineage, authority.leaf(*domains, days=days), authority.pem, 1)
    order = Order(server, tuple(sorted(domains if requested is None else requested)), "http")
    save(record_path(lineage.name, base), Record(issued=order))


def install_program(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Replace a program of the host by a shell script."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}")
    (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def write_files(files: list[File]) -> None:
    for file in files:
        path = Path(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if file.is_link:
            path.symlink_to(file.content.decode())
        else:
            path.write_bytes(file.content)


def test_self_signed_certificate_covers_its_names_for_the_maximum_validity(tmp_path: Path) -> None:
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


def test_read_pair_rejects_a_key_of_another_certificate(tmp_path: Path) -> None:
    files = CertificateFiles("app", "shop", tmp_path)
    files.chain.parent.mkdir(parents=True)
    pem, other = self_signed("app.shop", ["shop.test"]), self_signed("app.shop", ["shop.test"])
    files.chain.write_text(pem.chain)
    assert read_pair(files.chain, files.key) is None
    files.key.write_text(other.key)
    assert read_pair(files.chain, files.key) is None
    files.key.write_text(pem.key)
    assert read_pair(files.chain, files.key)


def test_self_signed_certificate_is_replaced_when_names_change_or_expiry_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_store(tmp_path, shop=entry("self_signed"))._desired_files("shop")
    write_files(first)
    assert make_store(tmp_path, shop=entry("self_signed"))._desired_files("shop") == first
    assert make_store(tmp_path, shop=entry("self_signed", "other.test"))._desired_files("shop") != first
    soon = time.time() + (SELF_SIGNED_DAYS - 20) * 86_400
    monkeypatch.setattr(time, "time", lambda: soon)
    assert make_store(tmp_path, shop=entry("self_signed"))._desired_files("shop") != first


def test_previous_certificate_stays_until_acme_has_issued_one(tmp_path: Path) -> None:
    leaf = Authority("own", datetime.now(UTC)).leaf("shop.test")
    own = make_store(tmp_path, shop={**entry("files"), "certificate": "c", "key": "k", "pem": leaf.pem, "pem_key": leaf.key_pem})
    write_files(own._desired_files("shop"))
    acme = make_store(tmp_path, shop=entry("acme"))
    assert acme._desired_files("shop") == own._desired_files("shop")
    assert acme._is_pending("shop")
    create_issued(tmp_path, "shop", "shop.test")
    files = CertificateFiles("app", "shop", tmp_path)
    links = acme._desired_files("shop")
    assert [(file.path, file.content.decode(), file.is_link) for file in links] == [
        (str(files.chain), str(files.lineage.chain), True),
        (str(files.key), str(files.lineage.key), True),
    ]
    assert not acme._is_pending("shop")


@pytest.mark.parametrize(
    ("changes", "pending"),
    [
        ({}, False),
        ({"server": "https://staging.test/dir"}, True),
        ({"days": (-90, -1)}, True),
        ({"days": (-77, 13)}, True),
        ({"days": (-5, 2)}, False),
        ({"days": (-6, 1)}, True),
    ],
)
def test_certificate_is_pending_when_server_expiry_or_names_require_it(
    tmp_path: Path, changes: dict[str, Any], *, pending: bool
) -> None:
    create_issued(tmp_path, "shop", "shop.test", "www.shop.test", **changes)
    assert make_store(tmp_path, shop=entry("acme", "www.shop.test", "shop.test"))._is_pending("shop") is pending
    assert make_store(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop"), "the names changed"


def test_names_added_by_the_server_do_not_make_a_certificate_pending(tmp_path: Path) -> None:
    create_issued(tmp_path, "shop", "shop.test", "www.shop.test", requested=["shop.test"])
    assert not make_store(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop")
    create_issued(tmp_path, "shop", "www.shop.test", requested=["shop.test"])
    assert make_store(tmp_path, shop=entry("acme", "shop.test"))._is_pending("shop"), "it lacks a requested name"


CERTBOT = """
case "$*" in
    *app.bad*) echo "ValueError: Requesting acme/dir: Connection refused"; exit 1 ;;
    *) cp -R "$READY/etc" "$BASE" ;;
esac
"""


def test_failed_issuance_does_not_block_other_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    create_issued(ready, "good", "good.test")
    install_program(ready, monkeypatch, "certbot", CERTBOT)
    base.mkdir()
    for name, value in {"READY": str(ready), "BASE": str(base)}.items():
        monkeypatch.setenv(name, value)
    bad = entry("acme", "bad.test") | {"origin": "tornado_apps.bad.tls"}
    with pytest.raises(CertificatesError) as caught:
        make_store(base, bad=bad, good=entry("acme", "good.test")).issue()
    assert str(caught.value).splitlines() == [
        "tornado_apps.bad.tls: no certificate was issued; the previous one stays in use: Connection refused. "
        "To fix: set another certificates_acme_directory, or allow this host to connect to the server"
    ]
    assert CertificateFiles("app", "good", base).chain.is_symlink()
    assert not CertificateFiles("app", "bad", base).chain.exists()


def test_repeated_failures_of_the_same_order_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(
        tmp_path / "bin", monkeypatch, "certbot", f"echo x >> {tmp_path}/calls; echo ValueError: no such thing; exit 1"
    )
    shop, other = make_store(tmp_path, shop=entry("acme")), make_store(tmp_path, shop=entry("acme", "other.test"))
    for _attempt in range(4):
        with pytest.raises(CertificatesError) as caught:
            shop.issue()
    assert re.search(
        r"stays in use: the attempt of .* UTC failed; the next attempt is possible after .* UTC: no such thing", str(caught.value)
    )
    calls = tmp_path / "calls"
    assert calls.read_text().count("x") == 3
    with pytest.raises(CertificatesError, match="stays in use: no such thing"):
        other.issue()
    assert calls.read_text().count("x") == 4, "a corrected entry is tried at once"


#: A service that has been active since boot and cannot be reloaded.
FAILING_RELOAD = """
case $1 in
    show) printf '%s\\n' LoadState=loaded ActiveState=active UnitFileState=enabled MainPID=0 \\
        ActiveEnterTimestampMonotonic=0 StateChangeTimestampMonotonic=0 ;;
    *) echo "address in use"; exit 1 ;;
esac
"""


def test_failed_reload_does_not_claim_to_restore_renewed_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", FAILING_RELOAD)
    create_issued(tmp_path, "shop", "shop.test")
    shop = replace(make_store(tmp_path, shop=entry("acme")), services=["web"])
    write_files(shop._desired_files("shop"))
    with pytest.raises(CertificatesError, match="address in use") as caught:
        shop.issue()
    assert str(caught.value).splitlines()[-1] == "web: the previous certificates are served until a reload succeeds."


#: certbot.timer is inactive until it is started.
SYSTEMCTL = """
case $1 in
    is-*) test -e "$STARTED" ;;
    *) echo "$@" >> "$STARTED" ;;
esac
"""


def test_stopped_renewal_timer_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", SYSTEMCTL)
    started = tmp_path / "started"
    monkeypatch.setenv("STARTED", str(started))
    assert make_store(tmp_path, shop=entry("self_signed"))._enable_renewal() == []
    assert make_store(tmp_path, shop=entry("acme"), check_mode=True)._enable_renewal() == ["certbot.timer"]
    assert not started.exists()
    assert make_store(tmp_path, shop=entry("acme"))._enable_renewal() == ["certbot.timer"]
    assert started.read_text() == "enable --now certbot.timer\n"
    assert make_store(tmp_path, shop=entry("acme"))._enable_renewal() == []


def test_check_mode_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "exit 1")
    base = tmp_path / "base"
    base.mkdir()
    result = make_store(base, check_mode=True, shop=entry("self_signed"), blog=entry("acme", "blog.test")).install()
    assert result.changed
    assert result.pending == ["blog"]
    assert result.after.startswith("shop: shop.test, self-signed\nblog: blog.test, temporary\n")
    assert result.after.endswith("certbot.timer\n")
    assert list(base.iterdir()) == []


def test_leftover_lists_unrequested_certificates_and_unused_lineages(tmp_path: Path) -> None:
    for name in ("shop", "gone"):
        create_issued(tmp_path, name, "shop.test")
    chains = CertificateFiles("app", "old", tmp_path).chain
    chains.parent.mkdir(parents=True)
    chains.write_text("")
    chains.with_name("other.set.pem").write_text("")
    assert make_store(tmp_path, shop=entry("acme"))._leftover() == ["gone", "old"]
    assert make_store(tmp_path, shop=entry("self_signed"))._leftover() == ["gone", "old", "shop"]
    assert installed_names("app", tmp_path) == ["old"]


def test_certificates_that_sites_of_others_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep those of apps of another inventory, which may share one; remove them when the last site is gone."""
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "exit 0")
    install_program(tmp_path / "bin", monkeypatch, "certbot", f"rm {tmp_path}/etc/letsencrypt/renewal/$4.conf")
    for name in ("any-shop-test", "old", "balanced", "gone"):
        create_issued(tmp_path, name, "*.shop.test")
        wanted = parse_requests({name: entry("acme", "*.shop.test") | {"challenge": "dns"}})
        write_files(replace(make_store(tmp_path), requests=wanted)._desired_files(name))
    site = tmp_path / "etc/nginx/funnel/app.first.conf"
    site.parent.mkdir(parents=True)
    site.write_text("ssl_certificate /etc/ssl/funnel/app.any-shop-test.pem;\nssl_certificate /etc/ssl/funnel/other.old.pem;\n")
    link = tmp_path / "etc/haproxy/certificates/app.balanced.pem"
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/ssl/funnel/app.balanced.pem")
    used = {"any-shop-test", "balanced"}
    assert used_names("app", tmp_path) == used
    assert unused_names("app", ["gone"], tmp_path) == ["old"]
    assert unused_names("app", [], tmp_path, except_site="first") == ["any-shop-test", "gone", "old"]
    store = make_store(tmp_path)
    assert store._hook(), "they are still renewed"
    assert store.issue().leftover == ["gone", "old"]
    assert {*installed_names("app", tmp_path)} == used
    site.unlink()
    link.unlink()
    assert store.issue().leftover == [*sorted(used)]
    assert installed_names("app", tmp_path) == []
    assert not store._hook()


def test_suggested_renewal_is_pending_until_a_certificate_is_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "exit 0")
    install_program(tmp_path / "bin", monkeypatch, "certbot", "exit 0")
    create_issued(tmp_path, "shop", "shop.test")
    path = renewal_information.record_path("app.shop", tmp_path)
    save_suggestion(
        path, Suggestion("", begins=time.time() - 60, ends=time.time() + 60)
    )  # the test's certificates have no identifier
    shop = make_store(tmp_path, shop=entry("acme"))
    assert shop.install().pending == ["shop"]
    assert shop.issue().pending == ["shop"]
    assert shop.issue().pending == []


DAMAGE: dict[str, Callable[[CertificateFiles], object]] = {
    "empty configuration": lambda files: files.lineage.configuration.write_text(""),
    "truncated configuration": lambda files: os.truncate(files.lineage.configuration, 300),
    "no configuration": lambda files: files.lineage.configuration.unlink(),
    "empty chain": lambda files: os.truncate(files.lineage.chain, 0),
    "truncated chain": lambda files: os.truncate(files.lineage.chain, 500),
    "missing link of the chain": lambda files: files.lineage.chain.resolve().write_text(
        files.lineage.chain.with_name("cert.pem").read_text()
    ),
    "no certificate in the archive": lambda files: files.lineage.chain.resolve().unlink(),
    "no key in the archive": lambda files: files.lineage.key.resolve().unlink(),
    "empty key": lambda files: os.truncate(files.lineage.key, 0),
    "no live directory": lambda files: shutil.rmtree(files.lineage.chain.parent),
    "copied instead of restored": lambda files: copy_link(files.lineage.chain),
}


def copy_link(path: Path) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize(
    ("kind", "generations"), [*((kind, 2) for kind in DAMAGE), ("truncated chain", 1), ("no live directory", 1), ("empty key", 1)]
)
def test_damaged_files_of_certbot_are_replaced_and_the_certificate_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, generations: int
) -> None:
    """What is served meanwhile is a complete chain, of the last generation unless its key is lost."""
    create_issued(tmp_path, "shop", "shop.test")
    files, authority = CertificateFiles("app", "shop", tmp_path), Authority("acme", datetime.now(UTC))
    leaves = [authority.leaf("shop.test") for _number in range(generations)]
    for number, leaf in enumerate(leaves, 1):
        add_generation(files.lineage, leaf, authority.pem, number)
    write_files(make_store(tmp_path, shop=entry("acme"))._desired_files("shop"))
    DAMAGE[kind](files)
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "case $1 in show) printf 'Result=success\\n' ;; esac")
    [status] = certificate_statuses(parse_requests({"shop": entry("acme")}), "app", {}, tmp_path)
    assert status.problem.endswith(("run site.yml to create them", "run site.yml to replace the certificate")), status.problem

    shop = make_store(tmp_path, shop=entry("acme"))
    assert shop.install().pending == ["shop"]
    lost = "key" in kind
    if not (lost and generations == 1):
        expected = leaves[-2] if lost else leaves[-1]
        assert files.chain.read_text() == expected.pem + authority.pem
        assert files.key.read_text() == expected.key_pem
        assert shop.install().before == "", "a second run changes nothing"
    else:
        assert read_pair(files.chain, files.key), "a self-signed one lets the services start"

    install_program(tmp_path / "bin", monkeypatch, "certbot", "echo ValueError: ended; exit 1")
    with pytest.raises(CertificatesError, match="no certificate was issued"):
        shop.issue()
    left = [path for path in (tmp_path / "etc/letsencrypt").glob("*/app.shop*") if path.parent.name != "funnel"]
    assert left == [], "certbot would refuse to create what exists"
    ready = tmp_path / "ready"
    create_issued(ready, "shop", "shop.test")
    install_program(tmp_path / "bin", monkeypatch, "certbot", f"cp -a {ready}/etc {tmp_path}")
    assert shop.issue().pending == ["shop"]
    assert files.chain.is_symlink()
    assert not (tmp_path / "etc/letsencrypt/funnel/app.shop.damaged").exists()


def test_hook_is_removed_with_the_last_certificate(tmp_path: Path) -> None:
    shop, blog = CertificateFiles("app", "shop", tmp_path), CertificateFiles("app", "blog", tmp_path)
    hook = hook_path("app", tmp_path)
    for path in (hook, shop.chain, shop.key, shop.record, blog.lineage.configuration):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_certificate(shop)
    assert not shop.chain.exists()
    assert not shop.key.exists()
    assert not shop.record.exists()
    assert hook.exists(), "another certificate is still renewed"
    blog.lineage.configuration.unlink()
    remove_certificate(blog)
    assert not hook.exists()


def test_missing_outdated_and_expiring_certificates_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "echo Result=success")

    def state(provider: str, *domains: str, read_at: float = time.time() + 60) -> CertificateStatus:
        requests = parse_requests({"shop": entry(provider, *domains)})
        return next(certificate_statuses(requests, "app", {"nginx": read_at}, tmp_path))

    assert state("self_signed").problem == "shop: the certificate or its key is missing; run site.yml to create them"
    write_files(make_store(tmp_path, shop=entry("self_signed"))._desired_files("shop"))
    assert state("self_signed").problem == ""
    assert state("self_signed", "shop.test", "www.shop.test").problem == (
        "shop: the certificate does not cover www.shop.test; run site.yml to issue one or to see why that fails"
    )
    assert state("self_signed", read_at=time.time() - 60).problem.startswith("shop: nginx still serves the previous certificate")
    assert state("acme").problem == "shop: the certificate is temporary; run site.yml to issue one or to see why that fails"
    create_issued(tmp_path, "shop", "shop.test", days=(-80, 10))
    write_files(make_store(tmp_path, shop=entry("acme"))._desired_files("shop"))
    record = record_path("app.shop", tmp_path)
    save(record, Record().failed(Order(SERVER, ("shop.test", "www.shop.test"), "http"), "refused", 0))
    assert state("acme", "shop.test", "www.shop.test").problem == (
        "shop: the certificate does not cover www.shop.test; the attempt of 1970-01-01 00:00 UTC failed: refused"
    )
    assert state("acme").kind == "acme"
    assert "in 9 days; its renewal is overdue" in state("acme").problem


#: certbot.service, which failed this many seconds after the boot.
FAILED_RENEWAL = """
case "$*" in
    *InvocationID*) printf '%s\\n' Result=exit-code InvocationID=4123067c ;;
    *) printf '%s\\n' LoadState=loaded ActiveState=failed UnitFileState=static MainPID=0 \\
        ActiveEnterTimestampMonotonic=0 StateChangeTimestampMonotonic={} ;;
esac
"""
LOG = "echo 'Failed to renew certificate app.shop with error: Some challenges have failed.'"


def test_failed_renewal_is_a_problem_until_the_certificate_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_issued(tmp_path, "shop", "shop.test")
    write_files(make_store(tmp_path, shop=entry("acme"))._desired_files("shop"))
    install_program(tmp_path / "bin", monkeypatch, "journalctl", LOG)

    def problem(failed_at: float) -> str:
        microseconds = int(failed_at * 1e6)
        install_program(tmp_path / "bin", monkeypatch, "systemctl", FAILED_RENEWAL.format(microseconds))
        [found] = certificate_statuses(parse_requests({"shop": entry("acme")}), "app", {}, tmp_path)
        return found.problem

    assert problem(time.clock_gettime(time.CLOCK_MONOTONIC) + 60) == (
        "shop: the certificate could not be replaced; its renewal failed: Some challenges have failed. certbot.timer repeats it; "
        "/var/log/letsencrypt/letsencrypt.log shows why"
    )
    assert problem(0) == "", "the certificate is newer"


def test_order_that_takes_too_long_is_ended_and_keeps_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "certbot", "sleep 60")
    monkeypatch.setattr(certbot, "ISSUE_TIMEOUT", 0.2)
    with pytest.raises(CertificatesError, match=r"acme\.test/dir did not complete the order in time\. To fix: run this again"):
        make_store(tmp_path, shop=entry("acme")).issue()
    failure = load(record_path("app.shop", tmp_path)).failure
    assert failure
    assert failure.reason.startswith("https://acme.test/dir did not complete")


def test_order_may_take_the_propagation_of_dns_records_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "certbot", "sleep 1; echo ValueError: ended by itself; exit 1")
    monkeypatch.setattr(certbot, "ISSUE_TIMEOUT", 0.2)
    dns = parse_dns({"plugin": "digitalocean", "credentials": {"token": "x"}, "propagation": 60})
    shop = make_store(tmp_path, shop=entry("acme") | {"challenge": "dns"})
    with pytest.raises(CertificatesError, match="ended by itself"):
        replace(shop, client=replace(shop.client, dns=dns, set_name="app")).issue()


def test_full_disk_does_not_hide_the_reason_of_certbot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "OSError: [Errno 28] No space left on device: '/etc/letsencrypt/keys'"
    install_program(tmp_path / "bin", monkeypatch, "certbot", f'echo "{full}"; exit 1')

    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device", "record")

    monkeypatch.setattr(issuance, "save", refuse)
    with pytest.raises(CertificatesError, match=r"no certificate was issued; .*No space left on device: '/etc/letsencrypt/keys'"):
        make_store(tmp_path, shop=entry("acme")).issue()


def test_failure_is_forgotten_when_the_entry_is_as_issued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_program(tmp_path / "bin", monkeypatch, "systemctl", "exit 0")
    create_issued(tmp_path, "shop", "shop.test")
    record = record_path("app.shop", tmp_path)
    save(record, load(record).failed(Order(SERVER, ("shop.test", "typo.test"), "http"), "refused", 0))
    make_store(tmp_path, shop=entry("acme", "shop.test", "typo.test")).install()
    assert load(record).failure
    make_store(tmp_path, shop=entry("acme")).install()
    assert load(record).failure is None
    assert load(record).issued


@pytest.mark.parametrize(
    ("request_entry", "expected"),
    [
        ({"provider": "acme", "domains": []}, "certificates_wanted.shop: requires domains for the certificate to cover"),
        (
            entry("acme", "*.shop.test"),
            "certificates_wanted.shop.provider: acme validates each name over HTTP, which *.shop.test",
        ),
        (
            entry("acme", "shop test"),
            "certificates_wanted.shop.domains[0]: must be a domain name in lower case; found 'shop test'",
        ),
        ({**entry("acme"), "key": "k"}, "certificates_wanted.shop.key: requires provider: files; found acme"),
        (entry("files"), "certificates_wanted.shop.certificate: is missing; provider: files requires certificate and key"),
        (entry("off"), 'certificates_wanted.shop.provider: must be "self_signed" or "files" or "acme"; found \'off\''),
    ],
)
def test_invalid_requests_are_reported_with_their_path(request_entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidDataError) as caught:
        parse_requests({"shop": request_entry})
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "https://acme-v02.api.letsencrypt.org/directory"),
        ({"certificates_acme_staging": True}, "https://acme-staging-v02.api.letsencrypt.org/directory"),
    ],
)
def test_directory_defaults_to_lets_encrypt_and_optionally_its_staging_server(variables: dict[str, Any], expected: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    templar = Templar(loader=DataLoader(), variables=defaults | variables)
    assert templar.template(trust_as_template(defaults["certificates_acme_directory"])) == expected
