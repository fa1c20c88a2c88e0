"""DNS-01 challenges: the DNS plugins of certbot that Debian and Ubuntu package, as data, and their credentials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Hidden, InvalidDataError, Range, parse
from ansible_collections.funnel.tornado.plugins.module_utils.tls.issuance import DIRECTORY

#: The role variable; messages about it begin with it.
VARIABLE = "certificates_acme_dns"

#: Credentials that each plugin requires, and those that it accepts in addition. The plugin ``google`` takes a service account in
#: JSON; ``route53`` uses the role of the EC2 instance without credentials.
CREDENTIALS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cloudflare": ((), ("api_token", "api_key", "email")),
    "desec": (("token",), ()),
    "digitalocean": (("token",), ()),
    "dnsimple": (("token",), ()),
    "gandi": ((), ("token", "api_key", "sharing_id")),
    "gehirn": (("api_token", "api_secret"), ()),
    "google": (("type", "client_email", "private_key", "token_uri"), ("*",)),
    "infomaniak": (("token",), ()),
    "linode": (("key",), ("version",)),
    "ovh": (("endpoint", "application_key", "application_secret", "consumer_key"), ()),
    "rfc2136": (("server", "name", "secret"), ("port", "algorithm", "sign_query")),
    "route53": ((), ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")),
    "sakuracloud": (("api_token", "api_secret"), ()),
}


@dataclass(frozen=True, kw_only=True)
class DnsChallenge:
    """How certbot sets the records of DNS-01 challenges: the value of ``certificates_acme_dns``."""

    plugin: Annotated[
        Literal[
            "cloudflare",
            "desec",
            "digitalocean",
            "dnsimple",
            "gandi",
            "gehirn",
            "google",
            "infomaniak",
            "linode",
            "ovh",
            "rfc2136",
            "route53",
            "sakuracloud",
        ],
        Doc("Plugin of certbot, from the package C(python3-certbot-dns-<plugin>)."),
    ]
    credentials: Annotated[
        dict[str, str | int], Doc("Options of its credentials file, without the prefix C(dns_<plugin>_)."), Hidden
    ] = field(default_factory=dict)
    propagation: Annotated[
        int | None,
        Doc("Seconds until all name servers have a new record; the default of the plugin if unset, mostly 10 to 60."),
        Range(0, 3600),
    ] = None

    @property
    def package(self) -> str:
        """The package of the plugin; not each distribution has all of them."""
        return f"python3-certbot-dns-{self.plugin}"

    def path(self, set_name: str) -> Path:
        """Return the path of the credentials file on the host."""
        return DIRECTORY / f"{set_name}.{self.plugin}.ini"

    def content(self) -> str:
        """Return the credentials file."""
        if self.plugin == "google":
            return json.dumps(self.credentials)
        if self.plugin == "route53":
            return "[default]\n" + "".join(f"{name} = {value}\n" for name, value in self.credentials.items())
        return "".join(f"dns_{self.plugin}_{name} = {value}\n" for name, value in self.credentials.items())

    def environment(self, set_name: str) -> dict[str, str]:
        """Return the environment variables that certbot needs, for an issuance and for renewals."""
        if self.plugin != "route53" or not self.credentials:
            return {}
        return {"AWS_SHARED_CREDENTIALS_FILE": str(self.path(set_name))}

    def options(self, set_name: str) -> list[str]:
        """Return the options of certbot that select the plugin; they hold no secret."""
        option = f"--dns-{self.plugin}"
        if self.plugin == "route53":
            return [option]
        wait = [] if self.propagation is None else [f"{option}-propagation-seconds", str(self.propagation)]
        return ["--authenticator", f"dns-{self.plugin}", f"{option}-credentials", str(self.path(set_name)), *wait]


def parse_dns(value: object) -> DnsChallenge | None:
    """Return the parsed ``certificates_acme_dns``; None if it is empty.

    :raises InvalidDataError: with all problems; values of credentials do not appear in them.
    """
    if not value:
        return None
    found = parse(DnsChallenge, value, VARIABLE)
    if problems := list(_credential_problems(found)):
        raise InvalidDataError(problems)
    return found


def _credential_problems(dns: DnsChallenge) -> Iterator[str]:
    required, optional = CREDENTIALS[dns.plugin]
    known = {*required, *optional}
    for name in required:
        if name not in dns.credentials:
            yield f"{VARIABLE}.credentials.{name}: is missing; {dns.plugin} requires {', '.join(required)}"
    for name, value in dns.credentials.items():
        if name not in known and "*" not in known:
            yield f"{VARIABLE}.credentials.{name}: unknown key of {dns.plugin}; known are {', '.join(sorted(known))}"
        if dns.plugin != "google" and "\n" in str(value):
            yield f"{VARIABLE}.credentials.{name}: must be one line"
    if not required and dns.plugin != "route53" and not dns.credentials:
        yield f"{VARIABLE}.credentials: is empty; {dns.plugin} requires {' or '.join(optional[:2])}"
