"""Issuance of certificates by an ACME server: checks, attempts and their records."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot, issuance, lineage_files, renewal_information
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import DnsChallenge
from ansible_collections.funnel.tornado.plugins.module_utils.tls.reachability import unreachable_domains
from ansible_collections.funnel.tornado.plugins.module_utils.tls.x509 import read

#: How to correct a domain that the self-check rejects.
_UNREACHABLE = (
    "the ACME server was not asked. To fix: make these names resolve to this host or its load balancers, and allow connections "
    "to port 80; if only this host cannot reach them, as behind NAT, set certificates_acme_self_check: false"
)


@dataclass(frozen=True)
class AcmeClient:
    """Orders certificates of a set with certbot.

    ``self_check``: whether to find unreachable domains before the ACME server does; ``dns``: how to set records of challenges.
    """

    account: certbot.Account
    self_check: bool = True
    dns: DnsChallenge | None = None
    set_name: str = ""
    base: Path = Path("/")

    def is_issued(self, lineage: certbot.Lineage, request: CertificateRequest) -> bool:
        """Return whether the last certificate of ``lineage`` was issued as requested."""
        return not lineage_files.damage(lineage) and self._record(lineage).issued == self._order(request)

    def suggested(self, lineages: Iterable[certbot.Lineage], *, write: bool) -> set[str]:
        """Return the names of the lineages that the ACME server suggests to renew now."""
        servers = {lineage.name: self.account.server for lineage in lineages}
        found = renewal_information.suggestions(servers, self.base, write=write)
        return {name for name, suggestion in found.items() if suggestion.is_due(time.time())}

    def issue(self, lineage: certbot.Lineage, request: CertificateRequest) -> None:
        """Issue a certificate, unless the last failures of the same order forbid an attempt now.

        :raises CertbotError: if none was issued.
        """
        record, order, now = self._record(lineage), self._order(request), time.time()
        if blocked := record.blocked(order, now):
            raise certbot.CertbotError(blocked.describe())
        dns = self.dns if request.challenge == "dns" else None
        if self.self_check and not dns and (reasons := unreachable_domains(request.domains)):
            reason = f"{'; '.join(reasons)}; {_UNREACHABLE}"
            self._save_failure(lineage, record.rejected(order, reason, now))
            raise certbot.CertbotError(reason)
        lineage_files.set_aside(lineage)
        try:
            if dns:
                options, environment = dns.options(self.set_name), dns.environment(self.set_name)
                lineage.issue(request.domains, self.account, options, environment, dns.propagation or 0)
            else:
                lineage.issue(request.domains, self.account, certbot.STANDALONE)
        except certbot.CertbotError as error:
            self._save_failure(lineage, record.failed(order, str(error), now, error.retry_after))
            raise
        self._save(lineage, issuance.Record(issued=order))
        renewal_information.finish(lineage.name, self.base)
        lineage_files.discard(lineage)
        if issued := read(lineage.chain):
            lineage.schedule_renewal(issued.lifetime)

    def files(self, requests: Iterable[CertificateRequest]) -> list[File]:
        """Return the files that issuance and renewals of the requests require on the host, besides those of certbot."""
        program = _program_path(self.set_name, self.base)
        lines = [f"ExecStartPre=-/usr/bin/python3 -I {_program_path(self.set_name, Path('/'))} {self.set_name}"]
        files = [File(str(program), inspect.getsource(renewal_information).encode())]
        if self.dns and any(request.challenge == "dns" for request in requests):
            path = self.base / self.dns.path(self.set_name).relative_to("/")
            files.append(File(str(path), self.dns.content().encode(), mode=0o600, secret=True))
            lines += [f"Environment={name}={value}" for name, value in self.dns.environment(self.set_name).items()]
        content = "".join(f"{line}\n" for line in ("[Service]", *lines))
        return [*files, File(str(_unit_path(self.set_name, self.base)), content.encode())]

    def _order(self, request: CertificateRequest) -> issuance.Order:
        challenge = f"dns-{self.dns.plugin}" if self.dns and request.challenge == "dns" else request.challenge
        return issuance.Order(self.account.server, tuple(sorted(request.domains)), challenge)

    def _record(self, lineage: certbot.Lineage) -> issuance.Record:
        return issuance.load(issuance.record_path(lineage.name, self.base))

    def _save(self, lineage: certbot.Lineage, record: issuance.Record) -> None:
        issuance.save(issuance.record_path(lineage.name, self.base), record)

    def _save_failure(self, lineage: certbot.Lineage, record: issuance.Record) -> None:
        with contextlib.suppress(OSError):  # such as a full disk, which certbot has reported
            self._save(lineage, record)


def acme_paths(set_name: str, base: Path = Path("/")) -> list[Path]:
    """Return the existing files of `AcmeClient.files` for a set."""
    found = (base / issuance.DIRECTORY.relative_to("/")).glob(f"{set_name}.*.ini")
    others = (_program_path(set_name, base), _unit_path(set_name, base))
    return [*sorted(found), *(path for path in others if path.exists())]


def _program_path(set_name: str, base: Path) -> Path:
    return base / f"usr/local/lib/funnel/renew-{set_name}.py"


def _unit_path(set_name: str, base: Path) -> Path:
    return base / f"etc/systemd/system/{certbot.SERVICE}.d/50-funnel-{set_name}.conf"
