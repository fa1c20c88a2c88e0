"""Issuance of certificates by an ACME server: checks, attempts and their records."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot, issuance
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.reachability import unreachable_domains

#: How to correct a domain that the self-check rejects.
_UNREACHABLE = (
    "the ACME server was not asked. To fix: make these names resolve to this host or its load balancers, and allow connections "
    "to port 80; if only this host cannot reach them, as behind NAT, set certificates_acme_self_check: false"
)


@dataclass(frozen=True)
class AcmeClient:
    """Orders certificates with certbot; ``self_check``: whether to find unreachable domains before the ACME server does."""

    account: certbot.Account
    self_check: bool = True
    base: Path = Path("/")

    def is_issued(self, lineage: certbot.Lineage, request: CertificateRequest) -> bool:
        """Return whether the last certificate of ``lineage`` was issued as requested."""
        return lineage.exists() and self._record(lineage).issued == self._order(request)

    def issue(self, lineage: certbot.Lineage, request: CertificateRequest) -> None:
        """Issue a certificate, unless the last failures of the same order forbid an attempt now.

        :raises CertbotError: if none was issued.
        """
        record, order, now = self._record(lineage), self._order(request), time.time()
        if blocked := record.blocked(order, now):
            raise certbot.CertbotError(blocked.describe())
        if self.self_check and (reasons := unreachable_domains(request.domains)):
            reason = f"{'; '.join(reasons)}; {_UNREACHABLE}"
            self._save(lineage, record.rejected(order, reason, now))
            raise certbot.CertbotError(reason)
        try:
            lineage.issue(request.domains, self.account, certbot.STANDALONE)
        except certbot.CertbotError as error:
            self._save(lineage, record.failed(order, str(error), now, error.retry_after))
            raise
        self._save(lineage, issuance.Record(issued=order))

    def _order(self, request: CertificateRequest) -> issuance.Order:
        return issuance.Order(self.account.server, tuple(sorted(request.domains)), "http")

    def _record(self, lineage: certbot.Lineage) -> issuance.Record:
        return issuance.load(issuance.record_path(lineage.name, self.base))

    def _save(self, lineage: certbot.Lineage, record: issuance.Record) -> None:
        issuance.save(issuance.record_path(lineage.name, self.base), record)
