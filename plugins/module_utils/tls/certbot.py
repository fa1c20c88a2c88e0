"""certbot, the ACME client of Debian: what it has issued, how it issues, and what it runs after a renewal."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, CommandResult, last_lines, run

#: Seconds that an ACME server may take for one certificate; certbot itself gives up on a single answer after 45.
ISSUE_SECONDS = 300.0

#: Seconds that another certbot is waited for.
LOCK_SECONDS = 120.0

#: What renews certificates. Debian's package starts it; whoever has stopped it since has forgotten what depends on it.
TIMER = "certbot.timer"

#: How lines of certbot's begin that say nothing of what went wrong.
_PHRASES = (
    "Saving debug log",
    "Ask for help",
    "See the logfile",
    "Account registered",
    "An unexpected error",
    "Requesting a cert",
    "Renewing an existing",
)

#: What surrounds the reason in a line, and what it says of options that are not the user's to set.
_NOISE = r"Unable to register an account with ACME server\. | Please .*|^\w*Error: (Requesting \S+: )?"

#: What would be right, by what the server or certbot says.
_ADVICE = {
    "external ?account": "certificates_acme_eab_key_id and certificates_acme_eab_hmac_key, which the server's operator gives out",
    "contact|e-?mail": "an address in certificates_acme_email that the server takes",
    "rateLimited|too many": "to wait, and to try with certificates_acme_staging: true meanwhile",
    "[Cc]onnection|resolve|timed out|SSL": "another certificates_acme_directory, or a way from this host to that one",
}


class CertbotError(Exception):
    """Nothing was issued. The message has the ACME server's words, and what would be right."""


@dataclass(frozen=True)
class Account:
    """An ACME server by its directory's URL, and how one has an account there; all but ``server`` may be empty."""

    server: str
    email: str = ""
    eab_key_id: str = ""
    eab_hmac_key: str = field(default="", repr=False)

    def options(self) -> list[str]:
        """Return the options of certbot that anybody may see."""
        contact = ["--email", self.email, "--no-eff-email"] if self.email else ["--register-unsafely-without-email"]
        return ["--agree-tos", "--server", self.server, *contact]

    def secrets(self) -> str:
        """Return the lines of a configuration file with the other ones."""
        lines = {"eab-kid": self.eab_key_id, "eab-hmac-key": self.eab_hmac_key}
        return "".join(f"{name} = {value}\n" for name, value in lines.items() if value)


@dataclass(frozen=True)
class Lineage:
    """What certbot calls a certificate with its renewals; ``base`` is another directory than ``/`` in tests only."""

    name: str
    base: Path = Path("/")

    @property
    def chain(self) -> Path:
        """Link to the newest certificate, with its chain."""
        return self.base / "etc/letsencrypt/live" / self.name / "fullchain.pem"

    @property
    def key(self) -> Path:
        """Link to its private key."""
        return self.chain.with_name("privkey.pem")

    @property
    def configuration(self) -> Path:
        """What certbot renews it by."""
        return self.base / "etc/letsencrypt/renewal" / f"{self.name}.conf"

    def exists(self) -> bool:
        """Tell whether it was issued and is renewed."""
        return self.configuration.exists() and self.chain.exists() and self.key.exists()

    def server(self) -> str:
        """Return the URL of the directory that it is renewed from."""
        found = re.search(r"^server = (\S+)$", self.configuration.read_text(), re.MULTILINE)
        return found[1] if found else ""

    def domains(self) -> set[str]:
        """Return the names that it was asked for with; the server may have added others to the certificate."""
        section = self.configuration.read_text().partition("[[webroot_map]]")[2].partition("[")[0]
        return {line.partition("=")[0].strip() for line in section.splitlines() if "=" in line}

    def issue(self, domains: Sequence[str], account: Account, challenges: Path) -> None:
        """Get a certificate for ``domains``, in the place of the one before; its challenges' answers go below ``challenges``.

        :raises CertbotError: when there is none; that of before stays.
        """
        # As a map it keeps all names; with --webroot-path only those that this time had a challenge.
        what = ["--cert-name", self.name, "--webroot-map", json.dumps({",".join(domains): str(challenges)})]
        how = ["--webroot", "--force-renewal", "--renew-with-new-domains"]
        # In a file, as arguments are seen by every user of the host; NamedTemporaryFile makes it for this user only.
        with tempfile.NamedTemporaryFile("w", suffix=".ini") as secrets:
            secrets.write(account.secrets())
            secrets.flush()
            options = ["certonly", "--non-interactive", "--config", secrets.name, *account.options()]
            try:
                issued = _certbot([*options, *what, *how])
            except CommandError as error:
                raise CertbotError(str(error)) from error
        if issued.status != 0:
            raise CertbotError(explanation(issued.output))

    def forget(self) -> None:
        """Remove it, if there is one, so that it is not renewed any more.

        :raises CommandError: when certbot does not.
        """
        if self.configuration.exists():
            deleted = _certbot(["delete", "--non-interactive", "--cert-name", self.name])
            if deleted.status != 0:
                raise CommandError(f"certbot did not delete {self.name}: {explanation(deleted.output)}")


def _certbot(arguments: Sequence[str]) -> CommandResult:
    """Run certbot, after another one, such as that of the timer, has ended."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        done = run(["certbot", *arguments], timeout=ISSUE_SECONDS, check=False)
        if "Another instance of Certbot" not in done.output or time.monotonic() > give_up:
            return done
        time.sleep(2)


def is_renewing() -> bool:
    """Tell whether the host renews certificates, after a reboot, too.

    :raises CommandError: when systemd is not there.
    """
    asked = (run(["systemctl", verb, "--quiet", TIMER], check=False) for verb in ("is-enabled", "is-active"))
    return all(answer.status == 0 for answer in asked)


def start_renewing() -> None:
    """See that the host renews certificates, after a reboot, too.

    :raises CommandError: when the timer cannot be started, such as one that is masked.
    """
    run(["systemctl", "enable", "--now", TIMER])


def names(prefix: str, base: Path = Path("/")) -> set[str]:
    """Return the names of the lineages that begin with ``prefix``, without it."""
    found = (base / "etc/letsencrypt/renewal").glob(f"{prefix}*.conf")
    return {path.stem.removeprefix(prefix) for path in found}


def explanation(output: str) -> str:
    """Return what certbot has said was wrong, in short, and what would be right."""
    found = re.findall(r"Domain: +(\S+)\s+Type: +(\S+)\s+Detail: +(.*)", output)
    if found:
        said = "; ".join(f"{domain}: {detail} ({kind})" for domain, kind, detail in found)
        return f"{said}. Right would be names that lead to port 80 of this host"
    lines = [re.sub(_NOISE, "", line.strip()) for line in output.splitlines() if not line.strip().startswith(_PHRASES)]
    said = last_lines("\n".join(lines), 3).replace("\n", " ").rstrip(".")
    advice = next((right for words, right in _ADVICE.items() if re.search(words, said, re.IGNORECASE)), "")
    return f"{said}. Right would be {advice}" if advice else said


def hook_path(of: str, base: Path = Path("/")) -> Path:
    """Return the path of what certbot runs when it has renewed certificates."""
    return base / "etc/letsencrypt/renewal-hooks/deploy" / f"funnel-{of}"


def hook(of: str, services: Mapping[str, Sequence[str]]) -> str:
    """Return the program that lets ``services`` read a renewed certificate of the set ``of``.

    ``services`` are names with the command that checks the configuration, which may be empty. Those that do not run are left
    alone. certbot runs it once for each certificate that it has renewed, and not at all if that is none.
    """
    steps = "".join(
        f"if systemctl is-active --quiet {name}; then\n"
        f"    {f'{shlex.join(check)} && ' if check else ''}systemctl reload {name} || failed=1\n"
        "fi\n"
        for name, check in services.items()
    )
    return (
        "#!/bin/sh\n# Ansible managed: the role certificates.\n"
        f'case "$RENEWED_LINEAGE" in\n    */{of}.*) ;;\n    *) exit 0 ;;\nesac\nfailed=0\n{steps}exit $failed\n'
    )
