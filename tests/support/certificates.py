"""Certificates of a host without Ansible: the code of the module certificates runs there, like in the role."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from testinfra.host import Host

from tests.support.remote import CODE_PATH, python

#: Installs and issues a certificate; returns the changes, the error, and the problems that status reports.
MANAGE = """
import json, sys
sys.path.insert(0, CODE_PATH)
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import certificate_statuses
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot
from ansible_collections.funnel.tornado.plugins.module_utils.tls.acme import AcmeClient
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificatesError, CertificateStore
options = json.loads(OPTIONS)
certbot.ISSUE_TIMEOUT = options["timeout"]
requests = parse_requests({options["name"]: options["request"]})
account = certbot.Account(*(options[name] for name in ("server", "email", "eab_key_id", "eab_hmac_key")))
client = AcmeClient(account, options["self_check"], parse_dns(options["dns"]), "app")
store = CertificateStore("app", requests, options["services"], client, {})
changes, error = "", ""
try:
    for step in options["steps"]:
        changes += getattr(store, step)().after
except CertificatesError as raised:
    error = error_text(raised)
readers = {name: systemd.query(name).loaded_at for name in options["services"]}
problems = [found.problem for found in certificate_statuses(requests, "app", readers) if found.problem]
print(json.dumps([changes, error, problems]))
"""


@dataclass(frozen=True)
class Outcome:
    """What a run changed, why it failed, and the problems that status reports after it."""

    changes: str
    error: str
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A certificate that the hosts shall have, and how they get it; ``timeout`` replaces the five minutes of an order."""

    domains: tuple[str, ...]
    server: str = "https://acme:14000/dir"
    provider: str = "acme"
    self_check: bool = True
    email: str = ""
    eab_key_id: str = ""
    eab_hmac_key: str = ""
    dns: dict[str, Any] | None = None
    timeout: float = 300.0

    def run(self, host: Host, name: str, *services: str, steps: tuple[str, ...] = ("install", "issue")) -> Outcome:
        """Have the certificate ``name`` of the apps on a host; without ``steps`` only its status is read."""
        domains = [domain.replace("HOST", host.backend.get_hostname()) for domain in self.domains]
        request = {"provider": self.provider, "domains": domains, "challenge": "dns" if self.dns else "http"}
        options = {
            key: getattr(self, key) for key in ("server", "email", "eab_key_id", "eab_hmac_key", "self_check", "dns", "timeout")
        }
        options |= {"name": name, "request": request, "services": services, "steps": steps}
        code = MANAGE.replace("CODE_PATH", repr(CODE_PATH)).replace("OPTIONS", repr(json.dumps(options)))
        return Outcome(*python(host, code))
