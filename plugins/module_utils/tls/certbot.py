"""certbot, the ACME client of Debian: issuance, renewal and deletion of certificates, and the deploy hook for renewals."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.atomic import stage_file
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import (
    CommandError,
    CommandResult,
    CommandTimeoutError,
    last_lines,
    run,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CHALLENGE_PORT

#: Timeout of issuing one certificate, in addition to the propagation of DNS records; certbot itself gives up on a single response
#: after 45 s.
ISSUE_TIMEOUT = 300.0

#: Maximum wait for another certbot process to finish.
LOCK_TIMEOUT = 120.0

#: Maximum time in seconds for which a server can forbid orders: a week, the longest limit of Let's Encrypt.
MAX_RETRY_AFTER = 7 * 86_400.0

#: Lifetimes in seconds: of certificates that certbot renews in time by itself, and of those that it should renew at half-time.
DEFAULT_LIFETIME, SHORT_LIFETIME = 89 * 86_400, 10 * 86_400

#: The timer of Debian's package that renews certificates. The package starts it; an administrator may have stopped it since.
TIMER = "certbot.timer"

#: The service that the timer starts.
SERVICE = "certbot.service"

#: certbot 1 of Ubuntu 22.04 creates RSA keys by default.
KEY = ("--key-type", "ecdsa", "--elliptic-curve", "secp256r1")

#: Answers http-01 challenges while certbot runs, without a directory and for all proxies that forward challenges to it.
STANDALONE = ("--standalone", "--preferred-challenges", "http", "--http-01-port", str(CHALLENGE_PORT))

#: Prefixes of output lines that do not explain a failure.
_IRRELEVANT_PREFIXES = (
    "Saving debug log",
    "Ask for help",
    "See the logfile",
    "Account registered",
    "An unexpected error",
    "Requesting a cert",
    "Renewing an existing",
)

#: Parts of a line around the reason, including advice about options that users of the collection do not set.
_NOISE = r"Unable to register an account with ACME server\. | Please .*|^\w*Error: (Requesting \S+: )?"

_RATE_LIMITED = "rateLimited|too many"

#: What certbot 2.1 prints instead of an error of the ACME server, whose class Python 3.11 cannot raise again.
_HIDDEN_ERROR = "can't set attribute"

#: certbot's log, and the number of characters at its end that the last attempt surely fits into.
LOG, LOG_TAIL = Path("/var/log/letsencrypt/letsencrypt.log"), 65_536

#: Advice by a pattern in the message of the ACME server or certbot.
_ADVICE = {
    "external ?account": (
        "set certificates_acme_eab_key_id and certificates_acme_eab_hmac_key, which the operator of the server provides"
    ),
    "rejectedIdentifier|forbidden by policy": "remove the names that the server does not certify, or use another server",
    "contact|e-?mail": "set certificates_acme_email to an address that the server accepts",
    _RATE_LIMITED: "wait; use certificates_acme_staging: true for tests in the meantime",
    "signature|TSIG|NOTAUTH|BADKEY|base domain|credential|Unauthorized|Forbidden|invalid .*token|dns_": (
        "correct the credentials in certificates_acme_dns, and allow this host to connect to the name server or its API"
    ),
    "CERTIFICATE_VERIFY_FAILED": "make this host trust the certificate of the server: update-ca-certificates(8)",
    "[Cc]onnection|resolve|timed out|SSL": "set another certificates_acme_directory, or allow this host to connect to the server",
}


#: The reason of an order that certbot could not finish in time.
_SLOW = "did not complete the order in time. To fix: run this again when it, or the name servers of a DNS challenge, are faster"

#: Advice after a failed challenge.
_FIX_HTTP = "make these names resolve to this host and allow connections to its port 80"
_FIX_DNS_RECORDS = "check that certificates_acme_dns sets records at the name servers of these names, and raise its propagation"


class CertbotError(Exception):
    """No certificate was issued. The message holds the error of the ACME server and how to fix it.

    ``retry_after``: seconds for which the server accepts no other order.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        """Keep what the server said."""
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Account:
    """An ACME account: the URL of the server's directory, and the optional contact address and external account binding."""

    server: str
    email: str = ""
    eab_key_id: str = ""
    eab_hmac_key: str = field(default="", repr=False)

    def options(self) -> list[str]:
        """Return the command-line options of certbot, which hold no secret."""
        contact = ["--email", self.email, "--no-eff-email"] if self.email else ["--register-unsafely-without-email"]
        return ["--agree-tos", "--server", self.server, *contact]

    def secrets(self) -> str:
        """Return the configuration file of certbot with the secret options."""
        lines = {"eab-kid": self.eab_key_id, "eab-hmac-key": self.eab_hmac_key}
        return "".join(f"{name} = {value}\n" for name, value in lines.items() if value)


@dataclass(frozen=True)
class Lineage:
    """A certificate of certbot with its renewals; tests replace ``base``."""

    name: str
    base: Path = Path("/")

    @property
    def chain(self) -> Path:
        """Link to the newest certificate chain."""
        return self.base / "etc/letsencrypt/live" / self.name / "fullchain.pem"

    @property
    def key(self) -> Path:
        """Link to the newest private key."""
        return self.chain.with_name("privkey.pem")

    @property
    def configuration(self) -> Path:
        """Renewal configuration."""
        return self.base / "etc/letsencrypt/renewal" / f"{self.name}.conf"

    def issue(
        self,
        domains: Sequence[str],
        account: Account,
        authenticator: Sequence[str],
        environment: Mapping[str, str] | None = None,
        propagation: float = 0.0,
    ) -> None:
        """Issue a certificate for ``domains``, replacing the previous one; ``authenticator`` are the options that select it.

        :arg propagation: seconds that certbot waits for DNS records.
        :raises CertbotError: if no certificate was issued; the previous one is kept.
        """
        request = ["--cert-name", self.name, *(word for domain in domains for word in ("--domain", domain)), *KEY]
        method = [*authenticator, "--force-renewal", "--renew-with-new-domains"]
        # Every user of the host can see command-line arguments; NamedTemporaryFile is readable by its owner only.
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".ini") as secrets:
            secrets.write(account.secrets())
            secrets.flush()
            options = ["certonly", "--non-interactive", "--config", secrets.name, *account.options()]
            try:
                issued = _certbot([*options, *request, *method], environment, ISSUE_TIMEOUT + propagation)
            except CommandTimeoutError as error:
                raise CertbotError(f"{account.server} {_SLOW}") from error
            except CommandError as error:
                raise CertbotError(str(error)) from error
        if issued.status != 0:
            output = visible_output(issued.output, LOG)
            raise CertbotError(explain_failure(output), retry_after(output, LOG))

    def schedule_renewal(self, lifetime: float) -> None:
        """Have a certificate of ``lifetime`` seconds renewed when a third of it is left, or half of a few days, like certbot 4.

        Earlier versions renew 30 days before the expiry, and so a short-lived certificate each time.
        """
        if lifetime < DEFAULT_LIFETIME:
            hours = int(lifetime / (2 if lifetime < SHORT_LIFETIME else 3) / 3600)
            text = re.sub(r"\A(#? ?renew_before_expiry = .*\n)?", "", self.configuration.read_text(encoding="utf-8"))
            line = f"renew_before_expiry = {hours} hours\n"
            staged = stage_file(self.configuration, f"{line}{text}".encode(), mode=0o644, uid=os.geteuid(), gid=os.getegid())
            staged.replace(self.configuration)

    def delete(self) -> None:
        """Delete the certificate, which also ends its renewal.

        :raises CommandError: if certbot fails.
        """
        deleted = _certbot(["delete", "--non-interactive", "--cert-name", self.name])
        if deleted.status != 0:
            raise CommandError(f"certbot did not delete {self.name}: {explain_failure(deleted.output)}")


def _certbot(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = ISSUE_TIMEOUT
) -> CommandResult:
    """Run certbot; while another instance runs, such as that of the timer, retry."""
    return poll(
        lambda: run(["certbot", *arguments], timeout=timeout, environment=environment, check=False),
        lambda result: "Another instance of Certbot" not in result.output,
        timeout=LOCK_TIMEOUT,
        interval=2,
    )


def visible_output(output: str, log: Path) -> str:
    """Return the output of a failed order, with the error of the ACME server that certbot 2.1 only writes to its log."""
    found = re.findall(r"^acme\.messages\.Error: (.+)", _tail(log), re.MULTILINE) if _HIDDEN_ERROR in output else []
    return str(found[-1]) if found else output


def retry_after(output: str, log: Path) -> float:
    """Return for how many seconds a server that limits the rate accepts no order, which only the log has."""
    limited = re.search(_RATE_LIMITED, output, re.IGNORECASE)
    found = re.findall(r"^Retry-After: (\d+)", _tail(log), re.MULTILINE) if limited else []
    return min(float(found[-1]), MAX_RETRY_AFTER) if found else 0.0


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:] if log.exists() else ""


def failed_renewals() -> dict[str, str]:
    """Return the lineages that the last run of certbot's timer could not renew, with the reasons.

    :raises CommandError: if systemctl or journalctl is not installed.
    """
    shown = run(["systemctl", "show", "--property=Result,InvocationID", SERVICE]).output
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if state.get("Result", "success") == "success" or not state.get("InvocationID"):
        return {}
    log = run(["journalctl", "--quiet", "--output=cat", f"_SYSTEMD_INVOCATION_ID={state['InvocationID']}"], check=False).output
    return dict(re.findall(r"Failed to renew certificate (\S+) with error: (.+)", log))


def is_renewal_enabled() -> bool:
    """Return whether the renewal timer is active now and enabled at boot.

    :raises CommandError: if systemctl is not installed.
    """
    checks = (run(["systemctl", verb, "--quiet", TIMER], check=False) for verb in ("is-enabled", "is-active"))
    return all(result.status == 0 for result in checks)


def enable_renewal() -> None:
    """Start the renewal timer and enable it at boot.

    :raises CommandError: if the timer cannot be started, for example because it is masked.
    """
    run(["systemctl", "enable", "--now", TIMER])


def lineage_names(prefix: str, base: Path = Path("/")) -> set[str]:
    """Return the names of the lineages that begin with ``prefix``, without the prefix."""
    found = (base / "etc/letsencrypt/renewal").glob(f"{prefix}*.conf")
    return {path.stem.removeprefix(prefix) for path in found}


def explain_failure(output: str) -> str:
    """Return the reason of a failure from the output of certbot, which may quote any server, with advice if there is any."""
    output = printable(output)
    found = re.findall(r"Domain: +(\S+)\s+Type: +(\S+)\s+Detail: +(.*)", output)
    if found:
        reasons = "; ".join(f"{domain}: {detail} ({kind})" for domain, kind, detail in found)
        by_dns = re.search(r"authenticator: dns-", output)
        return f"{reasons}. To fix: {_FIX_DNS_RECORDS if by_dns else _FIX_HTTP}"
    lines = [
        re.sub(_NOISE, "", line.strip()) for line in output.splitlines() if not line.strip().startswith(_IRRELEVANT_PREFIXES)
    ]
    reason = last_lines("\n".join(lines), 3).replace("\n", " ").rstrip(".")
    advice = next((fix for pattern, fix in _ADVICE.items() if re.search(pattern, reason, re.IGNORECASE)), "")
    return f"{reason}. To fix: {advice}" if advice else reason


def hook_path(set_name: str, base: Path = Path("/")) -> Path:
    """Return the path of the deploy hook that certbot runs after renewing certificates."""
    return base / "etc/letsencrypt/renewal-hooks/deploy" / f"funnel-{set_name}"


def render_hook(set_name: str, services: Mapping[str, Sequence[str]]) -> str:
    """Return the deploy hook that reloads ``services`` after a certificate of the set was renewed.

    ``services`` maps names to the command that checks the configuration, which may be empty. Inactive services are skipped.
    certbot runs the hook once for each renewed certificate.
    """
    steps = "".join(
        f"if systemctl is-active --quiet {name}; then\n"
        f"    {f'{shlex.join(check)} && ' if check else ''}systemctl reload {name} || failed=1\n"
        "fi\n"
        for name, check in services.items()
    )
    return (
        "#!/bin/sh\n# Ansible managed: the role certificates.\n"
        f'case "$RENEWED_LINEAGE" in\n    */{set_name}.*) ;;\n    *) exit 0 ;;\nesac\nfailed=0\n{steps}exit $failed\n'
    )
