"""The certificates of a host: what there is, what has to be, and how one becomes the other without an interruption.

What certbot issued stays in ``/etc/letsencrypt/live``: chain and key are then links into it, so that a renewal takes a reload
and no copy. Until it has, both are whatever there was before, or a self-signed certificate that lets nginx start.
"""

from __future__ import annotations

import re
import ssl
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import Change, File, FileSet, FileSetError, Swap
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import (
    CHALLENGES,
    CertificateRequest,
    chain_path,
    installed_names,
    is_covered,
    key_path,
)

#: Days that a self-signed certificate is good for: the most that browsers take of any.
SELF_SIGNED_DAYS = 397

#: A self-signed certificate is made anew by a run that finds fewer days left.
RENEWAL_DAYS = 30

#: With fewer days left something is wrong: whoever renews it should have.
EXPIRY_WARNING_DAYS = 14

#: How the services that may read certificates check their configuration, these included.
CHECKS: Mapping[str, Sequence[str]] = {
    "nginx": ("/usr/sbin/nginx", "-t", "-q"),
    "haproxy": ("/usr/sbin/haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg"),
}

#: Where a service writes its errors, when that is not the journal.
LOGS = {"nginx": Path("/var/log/nginx/error.log")}

_DAY = 86_400


class CertificatesError(Exception):
    """A certificate cannot be made, issued or used. The message says which one, and that what was served still is."""


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificate ``name`` of the set ``of`` lies; ``base`` is another directory than ``/`` in tests only."""

    of: str
    name: str
    base: Path = Path("/")

    @property
    def chain(self) -> Path:
        """The certificate and its chain."""
        return self.base / chain_path(self.of, self.name).relative_to("/")

    @property
    def key(self) -> Path:
        """The private key."""
        return self.base / key_path(self.of, self.name).relative_to("/")

    @property
    def lineage(self) -> certbot.Lineage:
        """What certbot has of it."""
        return certbot.Lineage(f"{self.of}.{self.name}", self.base)

    @property
    def temporary(self) -> bool:
        """Whether what is there is not certbot's."""
        return not self.chain.is_symlink()


@dataclass(frozen=True)
class Certificate:
    """What the first certificate of a file says; ``expires`` is in unix time."""

    names: frozenset[str]
    issuer: str
    expires: float
    self_signed: bool
    public_key: str

    def days_left(self, now: float) -> int:
        """Return the whole days that it is still good for; less than 0 when it is no more."""
        return int((self.expires - now) // _DAY)

    def missing(self, domains: Iterable[str]) -> list[str]:
        """Return those of ``domains`` that it is not for."""
        return [domain for domain in domains if not is_covered(domain, self.names)]

    def describe(self) -> str:
        """Return a line for people."""
        by = "self-signed" if self.self_signed else f"issued by {self.issuer}"
        return f"{', '.join(sorted(self.names))}, {by}, until {format_date(self.expires)}"


def format_date(moment: float) -> str:
    """Return the day of a unix time."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def read(path: Path) -> Certificate | None:
    """Return what the first certificate of a PEM file says; None when there is none.

    :raises CommandError: when the host has no openssl.
    """
    if not path.exists():
        return None
    show = ["-noout", "-enddate", "-subject", "-issuer", "-nameopt", "RFC2253", "-ext", "subjectAltName", "-pubkey"]
    shown = run(["openssl", "x509", "-in", str(path), *show], check=False)
    if shown.status != 0:
        return None
    value = dict(line.split("=", 1) for line in shown.output.splitlines() if re.match("(notAfter|subject|issuer)=", line))
    names = re.search(r"Subject Alternative Name:.*\n(.*)", shown.output)
    public = re.search(r"-----BEGIN PUBLIC KEY-----.*-----END PUBLIC KEY-----", shown.output, re.DOTALL)
    return Certificate(
        names=frozenset(re.findall(r"dns:([^,\s]+)", names[1].lower() if names else "")),
        issuer=value["issuer"],
        expires=ssl.cert_time_to_seconds(value["notAfter"]),
        self_signed=value["issuer"] == value["subject"],
        public_key=public[0] if public else "",
    )


def read_pair(place: CertificateFiles) -> Certificate | None:
    """Return what the certificate says that is at ``place``; None when there is none, or no key that belongs to it."""
    found = read(place.chain)
    if found is None or not place.key.exists():
        return None
    public = run(["openssl", "pkey", "-in", str(place.key), "-passin", "pass:", "-pubout"], check=False).output
    return found if public.strip() == found.public_key else None


@dataclass(frozen=True)
class Pem:
    """A certificate with its chain, and its private key, as texts."""

    chain: str
    key: str


def self_signed(name: str, domains: Sequence[str]) -> Pem:
    """Return a new self-signed certificate, and its key on the curve P-256.

    :raises CommandError: when openssl is not there or does not make one.
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
    with tempfile.TemporaryDirectory() as directory:  # root's alone: nobody else sees the key
        config, chain, key = (Path(directory) / file for file in ("config", "chain", "key"))
        config.write_text(configuration)
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-sha256", "-days", str(SELF_SIGNED_DAYS)]
        files = ["-config", str(config), "-out", str(chain), "-keyout", str(key)]
        run(["openssl", "req", "-x509", *kind, *files])
        return Pem(chain.read_text(), key.read_text())


@dataclass(frozen=True)
class StoreResult:
    """What was done to certificates, or would be, by name.

    ``pending`` have still to be issued; ``leftover`` are there and no longer wanted; ``services`` were reloaded.
    """

    changed: bool
    pending: list[str]
    leftover: list[str]
    services: list[str]
    before: str
    after: str


@dataclass(frozen=True)
class CertificateStore:
    """Keeps the certificates of the set ``of`` on a host as they are ``wanted``.

    ``contents`` are those of the controller's files, by name; ``services`` read what changed, if they are active. With
    ``check_mode`` nothing is changed.
    """

    of: str
    wanted: Mapping[str, CertificateRequest]
    services: Sequence[str]
    account: certbot.Account
    contents: Mapping[str, Pem]
    check_mode: bool = False
    base: Path = Path("/")

    def place(self) -> StoreResult:
        """See that there is a certificate for each that is wanted, if only a temporary one of those that are to be issued.

        :raises CertificatesError: when one cannot be made, or a service does not take it; those of before are back then.
        """
        try:
            described = {name: self._describe(name) for name in self.wanted}
            files = [file for name in self.wanted for file in self._files(name)]
            changes = FileSet(self.base, [*files, *self._hook()], absent=self._no_hook()).changes()
            reloaded = self._apply(changes)
            timer = self._start_timer()
            pending = [name for name in self.wanted if self._is_pending(name)]
        except (CommandError, FileSetError, OSError, systemd.ServiceError) as error:
            raise CertificatesError(str(error)) from error
        paths = {change.path for change in changes}
        new = [name for name in self.wanted if paths & {self._at(name).chain, self._at(name).key}]
        others = [*(change.path for change in changes if change.path.suffix not in {".pem", ".key"}), *timer]
        return StoreResult(
            changed=bool(changes or reloaded or timer),
            pending=pending,
            leftover=self._leftover(),
            services=reloaded,
            before="".join(described[name] for name in new),
            after="".join([*(self._intention(name) for name in new), *(f"{other}\n" for other in others)]),
        )

    def issue(self) -> StoreResult:
        """Let certbot issue what is pending, use it, and remove what is no longer wanted.

        All are tried. Of one that cannot be issued the certificate of before stays in use.

        :raises CertificatesError: naming each that could not be issued, with the reason and what would be right.
        """
        problems: list[str] = []
        try:
            pending = [name for name in self.wanted if self._is_pending(name)]
            before = "".join(self._describe(name) for name in pending)
            if not self.check_mode:
                problems.extend(problem for name in pending if (problem := self._issue(name)))
            reloaded = self._apply(FileSet(self.base, [file for name in self.wanted for file in self._links(name)]).changes())
            leftover = self._leftover()
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
                f"{name}: {', '.join(self.wanted[name].domains)}, issued by {self.account.server}\n" for name in pending
            ),
        )

    def _at(self, name: str) -> CertificateFiles:
        return CertificateFiles(self.of, name, self.base)

    def _files(self, name: str) -> list[File]:
        """Return the files that a certificate has to be now."""
        place, wanted = self._at(name), self.wanted[name]
        if wanted.provider == "files":
            return _pair(place, self.contents[name])
        if wanted.provider == "acme" and (links := self._links(name)):
            return links
        found = read_pair(place)
        if found is None or (wanted.provider == "self_signed" and not _is_good(found, wanted.domains)):
            # A dry run needs to know that they differ; it may be on a host that has no openssl yet.
            return _pair(place, Pem("", "") if self.check_mode else self_signed(f"{self.of}.{name}", wanted.domains))
        return _pair(place, Pem(place.chain.read_text(), place.key.read_text()))

    def _links(self, name: str) -> list[File]:
        """Return the links to what certbot has issued; none if it has not."""
        place = self._at(name)
        if self.wanted[name].provider != "acme" or not place.lineage.exists():
            return []
        targets = {place.chain: place.lineage.chain, place.key: place.lineage.key}
        return [File(str(path), str(target).encode(), is_link=True) for path, target in targets.items()]

    def _is_pending(self, name: str) -> bool:
        wanted, lineage = self.wanted[name], self._at(name).lineage
        if wanted.provider != "acme":
            return False
        if not lineage.exists() or lineage.server() != self.account.server:
            return True
        if lineage.domains() != set(wanted.domains):
            return True
        found = read(lineage.chain)
        return found is None or found.missing(wanted.domains) != [] or found.expires < time.time()

    def _issue(self, name: str) -> str:
        """Let certbot issue a certificate; return what is wrong, if anything."""
        wanted = self.wanted[name]
        challenges = self.base / CHALLENGES.relative_to("/")
        challenges.mkdir(parents=True, exist_ok=True)
        challenges.chmod(0o755)  # whatever the umask is: nginx has to pass through
        try:
            self._at(name).lineage.issue(wanted.domains, self.account, challenges)
        except certbot.CertbotError as error:
            return f"{wanted.origin}: no certificate was issued, and what was served still is: {error}"
        return ""

    def _hook(self) -> list[File]:
        """Return what certbot runs after a renewal, if it has anything to renew."""
        if not any(wanted.provider == "acme" for wanted in self.wanted.values()):
            return []
        checks = {name: CHECKS.get(name, ()) for name in self.services}
        return [File(str(certbot.hook_path(self.of, self.base)), certbot.hook(self.of, checks).encode(), mode=0o755)]

    def _no_hook(self) -> list[str]:
        return [] if self._hook() else [str(certbot.hook_path(self.of, self.base))]

    def _start_timer(self) -> list[str]:
        """See that what certbot issues is renewed, if it has anything to; return what was started, or would be."""
        if not self._hook() or certbot.is_renewing():
            return []
        if not self.check_mode:
            certbot.start_renewing()
        return [certbot.TIMER]

    def _apply(self, changes: Sequence[Change]) -> list[str]:
        """Make the changes, let the services read them, and return the names of these; go back if one does not take them.

        A service may also be behind what is there, after a run that was cut off or a renewal whose reload failed.
        """
        found = {name: systemd.look(name) for name in self.services}
        chains = [self._at(name).chain for name in self.wanted]
        concerned = any(change.path in {*chains, *(self._at(name).key for name in self.wanted)} for change in changes)
        behind = {name: one for name, one in found.items() if one.active and (concerned or is_any_newer(chains, one.settled_at))}
        if self.check_mode:
            return list(behind)
        swap = Swap(changes)
        swap.make()
        reloaded: list[str] = []
        try:
            # No service reads the files before all accept them: they stand where the configurations say that they are.
            for name in behind.keys() & CHECKS.keys():
                run(CHECKS[name])
            for name, state in behind.items():
                reloaded.append(name)
                _reload(name, state)
        except (CommandError, systemd.ServiceError) as error:
            swap.undo()
            # Else it is certbot that has replaced what the links lead to.
            stale = f"{' and '.join(behind)}: the certificates of before are served until it can be reloaded."
            raise CertificatesError(f"{error}\n{_back_to_before(reloaded) if concerned else stale}") from error
        return reloaded

    def _leftover(self) -> list[str]:
        """Return the names of what is there and no longer wanted, certbot's of those that another provider has now, too."""
        present = installed_names(self.of, self.base)
        issued = certbot.names(f"{self.of}.", self.base)
        lineages = {name for name in issued if name not in self.wanted or self.wanted[name].provider != "acme"}
        return sorted((set(present) - self.wanted.keys()) | lineages)

    def _remove(self, leftover: Sequence[str]) -> None:
        for name in leftover:
            if name in self.wanted:
                self._at(name).lineage.forget()  # another provider's is in use
            else:
                remove_certificate(self._at(name))

    def _describe(self, name: str) -> str:
        found = read(self._at(name).chain)
        return f"{name}: {found.describe()}\n" if found else ""

    def _intention(self, name: str) -> str:
        wanted = self.wanted[name]
        how = {"acme": "temporary", "files": f"of {wanted.certificate}", "self_signed": "self-signed"}[wanted.provider]
        return f"{name}: {', '.join(wanted.domains)}, {'certbot has issued it' if self._links(name) else how}\n"


def remove_certificate(place: CertificateFiles) -> None:
    """Remove a certificate that nothing names any more, and let certbot forget it, and its hook with the last of a set.

    :raises CommandError: when certbot does not.
    """
    place.lineage.forget()
    place.chain.unlink(missing_ok=True)
    place.key.unlink(missing_ok=True)
    if not certbot.names(f"{place.of}.", place.base):
        certbot.hook_path(place.of, place.base).unlink(missing_ok=True)


def _pair(place: CertificateFiles, pem: Pem) -> list[File]:
    return [File(str(place.chain), pem.chain.encode()), File(str(place.key), pem.key.encode(), mode=0o600, secret=True)]


def _is_good(found: Certificate, domains: Sequence[str]) -> bool:
    """Tell whether a self-signed certificate can stay."""
    return found.self_signed and found.names == set(domains) and found.days_left(time.time()) >= RENEWAL_DAYS


def is_any_newer(chains: Sequence[Path], moment: float) -> bool:
    """Tell whether a certificate, or the link to it, is newer than ``moment``."""
    found = [path for path in chains if path.exists()]
    return any(max(path.stat().st_mtime, path.lstat().st_mtime) > moment for path in found)


def _reload(name: str, state: systemd.State) -> None:
    # Whether it is to start with the host is not for a certificate to say.
    systemd.activate(systemd.Wanted(name, "reload", LOGS.get(name)), replace(state, enabled=True), "reload")


def _back_to_before(names: Iterable[str]) -> str:
    """Let the services read the certificates that are back, and return a sentence that says how it stands now."""
    try:
        for name in names:
            _reload(name, systemd.look(name))
    except (CommandError, systemd.ServiceError) as error:
        return f"The certificates of before are back, but not the service: {error}"
    return "The certificates of before are back."
