from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import PromptVaultSecret, VaultLib

from ansible_collections.funnel.tornado.plugins.action.certificates import read_files
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import is_covered, parse_requests
from ansible_collections.funnel.tornado.plugins.plugin_utils.certificate_validation import (
    certificate_problems,
    key_problems,
)
from tests.support.pki import Authority, key_pem

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ROOT = Authority("root", NOW)
INTERMEDIATE = ROOT.authority("intermediate")
LEAF = INTERMEDIATE.leaf("shop.test", "*.shop.test")


def test_ordered_chain_for_all_domains_is_accepted() -> None:
    chain = LEAF.pem + INTERMEDIATE.pem + ROOT.pem
    assert list(certificate_problems(chain, ["shop.test", "www.shop.test", "*.shop.test"], NOW)) == []
    assert list(key_problems(LEAF.key_pem, chain)) == []


@pytest.mark.parametrize(
    ("chain", "domains", "expected"),
    [
        ("no certificate", ["shop.test"], "contains no certificate in PEM format"),
        (
            LEAF.pem + ROOT.pem,
            ["shop.test"],
            "certificate 1 in it is issued by CN=intermediate, but certificate 2 is CN=root; put the certificate of the site",
        ),
        (
            INTERMEDIATE.pem + LEAF.pem,
            ["shop.test"],
            "certificate 1 in it is issued by CN=root, but certificate 2 is CN=shop.test;",
        ),
        (
            LEAF.pem,
            ["shop.test", "other.test", "a.b.shop.test"],
            "does not cover other.test, a.b.shop.test; it covers shop.test, *.shop",
        ),
        (ROOT.leaf(days=(-90, -1)).pem, [], "certificate 1 in it (CN=leaf) expired at 2026-05-31 00:00 UTC"),
        (ROOT.leaf(days=(1, 90)).pem, [], "certificate 1 in it (CN=leaf) is not valid before 2026-06-02 00:00 UTC"),
        (ROOT.leaf().pem, ["shop.test"], "does not cover shop.test; it covers no name"),
    ],
)
def test_unusable_certificate_is_reported(chain: str, domains: list[str], expected: str) -> None:
    assert any(problem.startswith(expected) for problem in certificate_problems(chain, domains, NOW))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (INTERMEDIATE.key_pem, "does not match the certificate (CN=shop.test)"),
        (LEAF.pem, "contains no private key in PEM format"),
        (key_pem(LEAF.key, passphrase=b"secret"), "is encrypted with a passphrase"),
    ],
)
def test_unusable_key_is_reported(key: str, expected: str) -> None:
    (problem,) = key_problems(key, LEAF.pem)
    assert problem.startswith(expected)


def test_weak_rsa_key_is_refused() -> None:
    weak = ROOT.leaf("shop.test", rsa_bits=1024)
    assert list(key_problems(weak.key_pem, weak.pem)) == [
        "has 1024 bits, which prevents servers from starting; the minimum is 2048"
    ]


@pytest.mark.parametrize(
    ("domain", "names", "expected"),
    [
        ("a.test", ["a.test"], True),
        ("a.test", ["*.test"], True),
        ("a.b.test", ["*.test"], False),
        ("test", ["*.test"], False),
        ("*.test", ["*.test"], True),
        ("*.a.test", ["*.test"], False),
    ],
)
def test_wildcard_covers_one_label(domain: str, names: list[str], *, expected: bool) -> None:
    assert is_covered(domain, names) is expected


def entry(directory: Path) -> dict[str, object]:
    return {
        "provider": "files",
        "domains": ["shop.test"],
        "certificate": str(directory / "shop.pem"),
        "key": str(directory / "shop.key"),
        "origin": "tornado_apps.shop.tls",
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    leaf = Authority("today", datetime.now(UTC)).leaf("shop.test")
    (tmp_path / "shop.pem").write_text(leaf.pem)
    (tmp_path / "shop.key").write_text(leaf.key_pem)
    (tmp_path / "shop.key").chmod(0o600)
    return tmp_path


def problems(directory: Path, loader: DataLoader | None = None) -> list[str]:
    return read_files(parse_requests({"shop": entry(directory)}), loader or DataLoader())[1]


def test_valid_files_are_read(directory: Path) -> None:
    pems, found = read_files(parse_requests({"shop": entry(directory)}), DataLoader())
    assert found == []
    assert pems == {"shop": ((directory / "shop.pem").read_text(), (directory / "shop.key").read_text())}


def test_key_readable_by_other_users_is_refused(directory: Path) -> None:
    (directory / "shop.key").chmod(0o640)
    assert problems(directory) == [
        f"tornado_apps.shop.tls.key: {directory}/shop.key is readable by other users (mode 0640); chmod 600 or use Ansible Vault"
    ]


def test_vault_encrypted_key_may_be_world_readable(directory: Path) -> None:
    secret = PromptVaultSecret(b"open sesame")
    key = directory / "shop.key"
    key.write_bytes(VaultLib([("default", secret)]).encrypt(key.read_bytes(), secret))
    key.chmod(0o644)
    loader = DataLoader()
    assert problems(directory) == ["tornado_apps.shop.tls.key: A vault password must be specified to decrypt data."]
    loader.set_vault_secrets([("default", secret)])
    assert problems(directory, loader) == []


def test_problems_name_the_path_of_the_key(directory: Path) -> None:
    (directory / "shop.key").unlink()
    assert problems(directory)[0].startswith(f"tornado_apps.shop.tls.key: there is no file {directory}/shop.key")
    other = Authority("other", datetime.now(UTC) - timedelta(days=400)).leaf("other.test")
    (directory / "shop.key").write_text(other.key_pem)
    (directory / "shop.key").chmod(0o644)
    (directory / "shop.pem").write_text(other.pem + other.pem)
    assert [problem.split(": ")[0] for problem in problems(directory)] == [
        *["tornado_apps.shop.tls.certificate"] * 4,
        "tornado_apps.shop.tls.key",
    ]
