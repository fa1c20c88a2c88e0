"""The certificate store of a host: converges the certificates in /etc/ssl/funnel to the desired state without downtime.

Certificates that certbot issued stay in ``/etc/letsencrypt/live``. Chain and key are then links to it, so that a renewal takes
a reload only. Until certbot has issued one, the previous certificate or a self-signed one, which lets nginx start, is in place.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import (
    Change,
    File,
    FileSet,
    FileSetError,
    Transaction,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot, issuance, lineage_files, renewal_information
from ansible_collections.funnel.tornado.plugins.module_utils.tls.acme import AcmeClient, acme_paths
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import (
    CertificateRequest,
    chain_path,
    installed_names,
    key_path,
    used_names,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.lineage_files import Pem
from ansible_collections.funnel.tornado.plugins.module_utils.tls.x509 import Certificate, read, read_pair

#: Validity of a self-signed certificate in days: the maximum that browsers accept.
SELF_SIGNED_DAYS = 397

#: A self-signed certificate with fewer days left is replaced.
RENEWAL_DAYS = 30

#: Commands that check the configuration of services, including their certificates.
CHECKS: Mapping[str, Sequence[str]] = {
    "nginx": ("/usr/sbin/nginx", "-t", "-q"),
    "haproxy": ("/usr/sbin/haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg"),
}

#: Error logs of services that do not log to the journal.
LOGS = {"nginx": Path("/var/log/nginx/error.log")}


class CertificatesError(Exception):
    """A certificate cannot be generated, issued or installed. The message names it; the previous one stays in use."""


@dataclass(frozen=True)
class CertificateFiles:
    """The files of the certificate ``name`` of a set; tests replace ``base``."""

    set_name: str
    name: str
    base: Path = Path("/")

    @property
    def chain(self) -> Path:
        """The certificate chain."""
        return self.base / chain_path(self.set_name, self.name).relative_to("/")

    @property
    def key(self) -> Path:
        """The private key."""
        return self.base / key_path(self.set_name, self.name).relative_to("/")

    @property
    def lineage(self) -> certbot.Lineage:
        """The certificate in certbot."""
        return certbot.Lineage(f"{self.set_name}.{self.name}", self.base)

    @property
    def record(self) -> Path:
        """The record of its ACME orders."""
        return issuance.record_path(self.lineage.name, self.base)

    @property
    def temporary(self) -> bool:
        """Whether the installed certificate was not issued by certbot."""
        return not self.chain.is_symlink()


def self_signed(name: str, domains: Sequence[str]) -> Pem:
    """Return a new self-signed certificate with a key on the curve P-256.

    :raises CommandError: if openssl is not installed or fails.
    """
    configuration = f"""
[req]
distinguished_name = subject
x509_extensions = extensions
prompt = no
[subject]
CN = {name[:64]}
[extensions]
subjectAltName = {", ".join(f"DNS:{domain}" for domain in domains)}
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""
    with tempfile.TemporaryDirectory() as directory:  # accessible by root only, which protects the key
        config, chain, key = (Path(directory) / file for file in ("config", "chain", "key"))
        config.write_text(configuration, encoding="utf-8")
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-sha256", "-days", str(SELF_SIGNED_DAYS)]
        files = ["-config", str(config), "-out", str(chain), "-keyout", str(key)]
        run(["openssl", "req", "-x509", *kind, *files])
        return Pem(chain.read_text(encoding="utf-8"), key.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class StoreResult:
    """The changes to certificates that were made, or would be made in check mode.

    ``pending`` names certificates still to be issued, ``leftover`` those that are installed but no longer requested;
    ``services`` were reloaded.
    """

    changed: bool
    pending: list[str]
    leftover: list[str]
    services: list[str]
    before: str
    after: str


@dataclass(frozen=True)
class CertificateStore:
    """The certificates of one set on a host, with the desired ones in ``requests``.

    ``contents`` are those of files on the controller, by name; active ``services`` are reloaded after changes. With
    ``check_mode`` nothing is changed. Those in ``keep`` stay although they are not requested.
    """

    set_name: str
    requests: Mapping[str, CertificateRequest]
    services: Sequence[str]
    client: AcmeClient
    contents: Mapping[str, Pem]
    check_mode: bool = False
    base: Path = Path("/")
    keep: Sequence[str] = ()

    def install(self) -> StoreResult:
        """Install a certificate for each request; those that are still to be issued get a temporary one.

        :raises CertificatesError: if one cannot be generated, or a service rejects it; the previous ones are restored then.
        """
        try:
            described = {name: self._describe(name) for name in self.requests}
            files = [file for name in self.requests for file in self._desired_files(name)]
            acme_files = self.client.files(self.requests.values()) if self._is_renewed() else []
            changes = FileSet(self.base, [*files, *acme_files, *self._hook()], absent=self._absent_files(acme_files)).changes()
            reloaded = self._apply(changes)
            timer = self._enable_renewal()
            pending = self._pending()
            if not self.check_mode:
                self._forget_failures(self.requests.keys() - {*pending})
        except (CommandError, FileSetError, OSError, systemd.ServiceError) as error:
            raise CertificatesError(str(error)) from error
        paths = {change.path for change in changes}
        changed = [name for name in self.requests if paths & {self._files(name).chain, self._files(name).key}]
        others = [*(change.path for change in changes if change.path.suffix not in {".pem", ".key"}), *timer]
        return StoreResult(
            changed=bool(changes or reloaded or timer),
            pending=pending,
            leftover=self._leftover(),
            services=reloaded,
            before="".join(described[name] for name in changed),
            after="".join([*(self._describe_desired(name) for name in changed), *(f"{other}\n" for other in others)]),
        )

    def issue(self) -> StoreResult:
        """Issue the pending certificates with certbot, install them, and remove those that are no longer requested.

        All pending certificates are attempted. If one cannot be issued, its previous certificate stays in use.

        :raises CertificatesError: naming each certificate that could not be issued, with the reason and how to fix it.
        """
        problems: list[str] = []
        try:
            pending = self._pending()
            before = "".join(self._describe(name) for name in pending)
            if not self.check_mode:
                problems.extend(problem for name in pending if (problem := self._issue(name)))
            reloaded = self._apply(FileSet(self.base, [file for name in self.requests for file in self._links(name)]).changes())
            used = used_names(self.set_name, self.base) - self.requests.keys()  # such as by apps of another inventory
            leftover = [name for name in self._leftover() if name not in used]
            if not self.check_mode:
                self._remove(leftover)
        except (CommandError, FileSetError, OSError, systemd.ServiceError, certbot.CertbotError) as error:
            raise CertificatesError("\n".join([*problems, str(error)])) from error
        if problems:
            raise CertificatesError("\n".join(problems))
        return StoreResult(
            changed=bool(pending or leftover or reloaded),
            pending=pending,
            leftover=leftover,
            services=reloaded,
            before=before + "".join(f"{name}\n" for name in leftover),
            after="".join(
                f"{name}: {', '.join(self.requests[name].domains)}, issued by {self.client.account.server}\n" for name in pending
            ),
        )

    def _files(self, name: str) -> CertificateFiles:
        return CertificateFiles(self.set_name, name, self.base)

    def _desired_files(self, name: str) -> list[File]:
        files, request = self._files(name), self.requests[name]
        if request.provider == "files":
            return _pair(files, self.contents[name])
        if request.provider == "acme" and (links := self._links(name)):
            return links
        installed = read_pair(files.chain, files.key)
        if request.provider == "acme" and (recovered := lineage_files.recover(files.lineage, request.domains)):
            return _pair(files, recovered)
        if installed is None or (request.provider == "self_signed" and not _is_up_to_date(installed, request.domains)):
            # Check mode needs the difference only; openssl may not be installed yet.
            return _pair(files, Pem("", "") if self.check_mode else self_signed(f"{self.set_name}.{name}", request.domains))
        return _pair(files, Pem(files.chain.read_text(encoding="utf-8"), files.key.read_text(encoding="utf-8")))

    def _links(self, name: str) -> list[File]:
        """Return the links to the certificate that certbot issued; none if it has not."""
        files = self._files(name)
        if self.requests[name].provider != "acme" or lineage_files.damage(files.lineage):
            return []
        targets = {files.chain: files.lineage.chain, files.key: files.lineage.key}
        return [File(str(path), str(target).encode(), is_link=True) for path, target in targets.items()]

    def _pending(self) -> list[str]:
        """Return the names of the certificates to issue now."""
        pending = {name for name in self.requests if self._is_pending(name)}
        others = {name: self._files(name).lineage for name, request in self.requests.items() if request.provider == "acme"}
        suggested = self.client.suggested([others[name] for name in others.keys() - pending], write=not self.check_mode)
        return [name for name in self.requests if name in pending or self._files(name).lineage.name in suggested]

    def _is_pending(self, name: str) -> bool:
        request, files = self.requests[name], self._files(name)
        if request.provider != "acme":
            return False
        if not self.client.is_issued(files.lineage, request):
            return True
        issued = read_pair(files.lineage.chain, files.lineage.key)
        return issued is None or issued.missing(request.domains) != [] or issued.is_overdue(time.time())

    def _forget_failures(self, names: Iterable[str]) -> None:
        """Forget the failed orders of certificates that are as requested again."""
        for path in (self._files(name).record for name in names):
            record = issuance.load(path)
            if record.failure:
                issuance.save(path, replace(record, failure=None))

    def _issue(self, name: str) -> str:
        """Issue a certificate; return the problem, or an empty string."""
        request = self.requests[name]
        try:
            self.client.issue(self._files(name).lineage, request)
        except certbot.CertbotError as error:
            return f"{request.origin}: no certificate was issued; the previous one stays in use: {error}"
        return ""

    def _is_renewed(self) -> bool:
        """Return whether certbot renews certificates of the set."""
        return self._keeps_renewed() or any(request.provider == "acme" for request in self.requests.values())

    def _keeps_renewed(self) -> bool:
        """Return whether certbot renews certificates that are not requested, but stay."""
        kept = {*self.keep, *used_names(self.set_name, self.base)} - self.requests.keys()
        return any(self._files(name).lineage.configuration.exists() for name in kept)

    def _hook(self) -> list[File]:
        """Return certbot's deploy hook; none if no certificate is renewed by certbot."""
        if not self._is_renewed():
            return []
        checks = {name: CHECKS.get(name, ()) for name in self.services}
        hook = certbot.render_hook(self.set_name, checks)
        return [File(str(certbot.hook_path(self.set_name, self.base)), hook.encode(), mode=0o755)]

    def _absent_files(self, acme_files: Sequence[File]) -> list[str]:
        """Return the files of ACME that no certificate needs any more."""
        if self._keeps_renewed():
            return []
        needed = {file.path for file in acme_files}
        hook = [] if self._is_renewed() else [str(certbot.hook_path(self.set_name, self.base))]
        return [*hook, *(str(path) for path in acme_paths(self.set_name, self.base) if str(path) not in needed)]

    def _enable_renewal(self) -> list[str]:
        """Enable certbot's timer if certificates need it; return the units that were started, or would be."""
        if not self._is_renewed() or certbot.is_renewal_enabled():
            return []
        if not self.check_mode:
            certbot.enable_renewal()
        return [certbot.TIMER]

    def _apply(self, changes: Sequence[Change]) -> list[str]:
        """Apply the changes, reload the outdated services and return their names; roll back if a service rejects the changes.

        A service may also be outdated after an interrupted run, or after a renewal whose reload failed.
        """
        states = {name: systemd.query(name) for name in self.services}
        chains = [self._files(name).chain for name in self.requests]
        affected = any(change.path in {*chains, *(self._files(name).key for name in self.requests)} for change in changes)
        outdated = {
            name: state for name, state in states.items() if state.active and (affected or is_any_newer(chains, state.loaded_at))
        }
        if self.check_mode:
            return list(outdated)
        transaction = Transaction(changes)
        transaction.apply()
        systemd.reload_units(change.path for change in changes)
        reloaded: list[str] = []
        try:
            # All services check the files, which are at the configured paths already, before the first one reads them.
            for name in outdated.keys() & CHECKS.keys():
                run(CHECKS[name])
            for name, state in outdated.items():
                reloaded.append(name)
                _reload(name, state)
        except (CommandError, systemd.ServiceError) as error:
            transaction.roll_back()
            # Without a change of ours, certbot has replaced the targets of the links, which cannot be rolled back.
            stale = f"{' and '.join(outdated)}: the previous certificates are served until a reload succeeds."
            raise CertificatesError(f"{error}\n{_reload_restored(reloaded) if affected else stale}") from error
        return reloaded

    def _leftover(self) -> list[str]:
        """Return the names that are no longer requested, and certbot's certificates whose provider is no longer acme."""
        installed = installed_names(self.set_name, self.base)
        issued = certbot.lineage_names(f"{self.set_name}.", self.base)
        lineages = {name for name in issued if name not in self.requests or self.requests[name].provider != "acme"}
        return sorted(((set(installed) - self.requests.keys()) | lineages) - {*self.keep})

    def _remove(self, leftover: Sequence[str]) -> None:
        for name in leftover:
            if name in self.requests:
                lineage_files.delete(self._files(name).lineage)  # the installed certificate is from another provider
            else:
                remove_certificate(self._files(name))

    def _describe(self, name: str) -> str:
        installed = read(self._files(name).chain)
        return f"{name}: {installed.describe()}\n" if installed else ""

    def _describe_desired(self, name: str) -> str:
        request = self.requests[name]
        source = {"acme": "temporary", "files": f"from {request.certificate}", "self_signed": "self-signed"}[request.provider]
        return f"{name}: {', '.join(request.domains)}, {'issued by certbot' if self._links(name) else source}\n"


def remove_certificate(files: CertificateFiles) -> None:
    """Remove a certificate from the host and from certbot; remove the deploy hook with the last certificate of a set.

    :raises CommandError: if certbot fails.
    """
    lineage_files.delete(files.lineage)
    renewal = renewal_information.record_path(files.lineage.name, files.base)
    obsolete = [files.chain, files.key, files.record, renewal]
    if not certbot.lineage_names(f"{files.set_name}.", files.base):
        obsolete += (certbot.hook_path(files.set_name, files.base), *acme_paths(files.set_name, files.base))
    for path in obsolete:
        path.unlink(missing_ok=True)
    systemd.reload_units(obsolete)


def unused_names(set_name: str, kept: Collection[str], base: Path = Path("/"), *, except_site: str = "") -> list[str]:
    """Return the names of the certificates of a set that neither are in ``kept`` nor used by a site, but ``except_site``."""
    found = {*installed_names(set_name, base), *certbot.lineage_names(f"{set_name}.", base)}
    return sorted(found - {*kept} - used_names(set_name, base, except_site=except_site))


def _pair(files: CertificateFiles, pem: Pem) -> list[File]:
    return [File(str(files.chain), pem.chain.encode()), File(str(files.key), pem.key.encode(), mode=0o600, secret=True)]


def _is_up_to_date(certificate: Certificate, domains: Sequence[str]) -> bool:
    """Return whether a self-signed certificate can be kept."""
    return certificate.self_signed and certificate.names == set(domains) and certificate.days_left(time.time()) >= RENEWAL_DAYS


def is_any_newer(chains: Sequence[Path], timestamp: float) -> bool:
    """Return whether a certificate, or the link to it, was modified after ``timestamp``."""
    found = [path for path in chains if path.exists()]
    return any(max(path.stat().st_mtime, path.lstat().st_mtime) > timestamp for path in found)


def _reload(name: str, state: systemd.ServiceState) -> None:
    # A change of certificates does not enable the service at boot.
    systemd.activate(systemd.ServiceSpec(name, "reload", LOGS.get(name)), replace(state, enabled=True), "reload")


def _reload_restored(names: Iterable[str]) -> str:
    """Reload the services with the restored certificates; return a sentence about the result."""
    try:
        for name in names:
            _reload(name, systemd.query(name))
    except (CommandError, systemd.ServiceError) as error:
        return f"The previous certificates were restored, but a service was not: {error}"
    return "The previous certificates were restored."
