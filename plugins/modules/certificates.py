#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Manage a set of TLS certificates on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates
short_description: Manage a set of TLS certificates on a host
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Installs C(/etc/ssl/funnel/<set>.<name>.pem), the chain, and C(/etc/ssl/funnel/<set>.<name>.key) for each desired certificate.
  - Validates files of the controller before connecting to the host. The key must match the certificate and be readable
    by its owner only, each certificate must be issued by the next one in the chain, all must be valid now, and the
    first must cover the domains.
  - For a certificate that an ACME server issues, keeps the previous one or installs a temporary self-signed one until
    a second call sets O(issue), when the challenges can be answered. Once issued, both paths are links to certbot's files.
  - After changes, active O(services) check their configuration and are reloaded, and the reload is verified.
    If a service rejects the new certificates, the previous ones are restored.
  - With V(acme) certificates, enables and starts C(certbot.timer), which renews them.
options:
  set:
    description: Name of the set. Certificates of other sets are not changed.
    type: str
    required: true
  wanted:
    description:
      - The desired certificates by name. Each has C(provider), V(self_signed), V(files) or V(acme), and C(domains), a list.
        V(acme) takes C(challenge), V(http) or V(dns), which supports wildcards.
        V(files) also requires C(certificate) and C(key), paths of PEM files on the controller (relative to the working
        directory of ansible-playbook, then to the playbook). The optional C(origin) is the variable that the entry was
        derived from, for messages.
    type: dict
    required: true
  services:
    description: Services that use the certificates.
    type: list
    elements: str
    default: [nginx]
  keep:
    description: Names of certificates that are not removed although they are not in O(wanted).
    type: list
    elements: str
    default: []
  issue:
    description: Whether to issue pending certificates with certbot and to remove those that are not in O(wanted).
    type: bool
    default: false
  acme_directory:
    description: URL of the ACME server's directory.
    type: str
    default: https://acme-v02.api.letsencrypt.org/directory
  acme_email:
    description: Contact address of the ACME account. Some servers require one.
    type: str
    default: ""
  acme_eab_key_id:
    description: Key ID of the external account, for servers that require external account binding.
    type: str
    default: ""
  acme_eab_hmac_key:
    description: HMAC key of the external account.
    type: str
    default: ""
  acme_dns:
    description:
      - How certbot sets the DNS records that validate certificates with C(challenge=dns). C(plugin) is C(cloudflare),
        C(digitalocean), C(dnsimple), C(gandi), C(gehirn), C(google), C(linode), C(ovh), C(rfc2136), C(route53) or C(sakuracloud).
      - C(credentials) are the options of its credentials file without their prefix C(dns_<plugin>_), which only root can read on
        the host; C(propagation) is the time in seconds until all name servers have a record.
    type: json
    default: "{}"
  acme_self_check:
    description: Whether to verify first that a challenge for each name would reach this host, so that mistakes do not count
      against the rate limits of the ACME server.
    type: bool
    default: true
  chains:
    description: Contents of C(certificate), by name. Internal; set by the action plugin.
    type: dict
    default: {}
  keys:
    description: Contents of C(key), by name. Internal; set by the action plugin.
    type: dict
    default: {}
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    description: Shows names, issuer and expiry date of changed certificates; never a key.
    support: full
"""

EXAMPLES = r"""
- name: Install the certificates, with a temporary one for the shop
  funnel.tornado.certificates: &certificates
    set: web
    wanted:
      shop: {provider: acme, domains: [shop.example.com]}
      intranet: {provider: files, domains: [intranet.example.com], certificate: files/intranet.pem, key: files/intranet.key}
    acme_email: admin@example.com

- name: Issue the certificate of the shop, now that nginx answers the challenges
  funnel.tornado.certificates:
    <<: *certificates
    issue: true
"""

RETURN = r"""
pending:
  description: Names of certificates still to be issued; with O(issue), those that were, or would be, issued.
  returned: success
  type: list
  elements: str
  sample: [shop]
leftover:
  description:
    - Names that are not in O(wanted), or whose provider is no longer V(acme).
    - With O(issue), those that were, or would be, removed.
  returned: success
  type: list
  elements: str
  sample: []
services:
  description: Services that were, or would be, reloaded.
  returned: success
  type: list
  elements: str
  sample: [nginx]
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.tls.acme import AcmeClient
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.module_utils.tls.lineage_files import Pem
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificatesError, CertificateStore

ARGUMENTS: dict[str, Any] = {
    "set": {"type": "str", "required": True},
    "wanted": {"type": "dict", "required": True},
    "services": {"type": "list", "elements": "str", "default": ["nginx"]},
    "keep": {"type": "list", "elements": "str", "default": []},
    "issue": {"type": "bool", "default": False},
    "acme_directory": {"type": "str", "default": "https://acme-v02.api.letsencrypt.org/directory"},
    "acme_email": {"type": "str", "default": ""},
    "acme_eab_key_id": {"type": "str", "default": ""},
    "acme_eab_hmac_key": {"type": "str", "default": "", "no_log": True},
    "acme_dns": {"type": "json", "default": "{}", "no_log": True},
    "acme_self_check": {"type": "bool", "default": True},
    "chains": {"type": "dict", "default": {}},
    "keys": {"type": "dict", "default": {}, "no_log": True},
}


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    account = Account(params["acme_directory"], params["acme_email"], params["acme_eab_key_id"], params["acme_eab_hmac_key"])
    try:
        store = CertificateStore(
            params["set"],
            parse_requests(params["wanted"]),
            params["services"],
            AcmeClient(account, params["acme_self_check"], parse_dns(json.loads(params["acme_dns"])), params["set"]),
            {name: Pem(chain, params["keys"][name]) for name, chain in params["chains"].items()},
            check_mode=module.check_mode,
            keep=params["keep"],
        )
        result = store.issue() if params["issue"] else store.install()
    except (CertificatesError, InvalidDataError) as error:
        module.fail_json(msg=error_text(error))
    module.exit_json(
        changed=result.changed,
        pending=result.pending,
        leftover=result.leftover,
        services=result.services,
        diff={"before": result.before, "after": result.after} if result.changed and module._diff else {},
    )


if __name__ == "__main__":
    main()
