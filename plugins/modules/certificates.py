#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Keep a set of certificates on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates
short_description: Keep a set of certificates on a host
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Sees that C(/etc/ssl/funnel/<set>.<name>.pem), the chain, and C(/etc/ssl/funnel/<set>.<name>.key) are there for each
    certificate that is wanted.
  - Files of the controller are checked before the host is reached. The key has to belong to the certificate and to be readable
    by its owner only, each certificate of the chain has to have signed the one before, all have to be valid now, and the
    first has to cover the domains.
  - Of one that an ACME server has to issue there is what was there before, or a temporary self-signed one, until O(issue) is
    set in a second call, when the challenges can be answered. Once issued, both paths are links to what certbot keeps.
  - O(services) that are active check their configuration and are reloaded when something changed, which is confirmed.
    If one does not take it, the certificates of before are put back.
  - With V(acme) among them C(certbot.timer), which renews them, is enabled and started.
options:
  set:
    description: Name of the set. Certificates of other sets are left alone.
    type: str
    required: true
  wanted:
    description:
      - The certificates by name. Each has C(provider), V(self_signed), V(files) or V(acme), C(domains), a list, with V(files)
        also C(certificate) and C(key), paths of PEM files on the controller (relative ones start where ansible-playbook was
        started, then beside the playbook), and maybe C(origin), the variable that it was made
        from, for messages.
    type: dict
    required: true
  services:
    description: Services that read the certificates.
    type: list
    elements: str
    default: [nginx]
  issue:
    description: Whether certbot is to issue what is pending, and what is not in O(wanted) is to be removed.
    type: bool
    default: false
  acme_directory:
    description: URL of the ACME server's directory.
    type: str
    default: https://acme-v02.api.letsencrypt.org/directory
  acme_email:
    description: Address of the account there. Some servers demand one.
    type: str
    default: ""
  acme_eab_key_id:
    description: Key id of an external account, where the server binds accounts to those.
    type: str
    default: ""
  acme_eab_hmac_key:
    description: HMAC key of that account.
    type: str
    default: ""
  chains:
    description: Contents of C(certificate), by name. The action plugin fills it; do not use it.
    type: dict
    default: {}
  keys:
    description: Contents of C(key), by name. The action plugin fills it; do not use it.
    type: dict
    default: {}
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    description: Shows names, issuer and end of the certificates that change; never a key.
    support: full
"""

EXAMPLES = r"""
- name: Have certificates, if only a temporary one of the shop
  funnel.tornado.certificates: &certificates
    set: web
    wanted:
      shop: {provider: acme, domains: [shop.example.com]}
      intranet: {provider: files, domains: [intranet.example.com], certificate: files/intranet.pem, key: files/intranet.key}
    acme_email: admin@example.com

- name: Let the shop's be issued, now that nginx answers the challenges
  funnel.tornado.certificates:
    <<: *certificates
    issue: true
"""

RETURN = r"""
pending:
  description: Names that are to be issued; with O(issue) those that were, or would be.
  returned: success
  type: list
  elements: str
  sample: [shop]
leftover:
  description: Names that are no longer wanted, or not from certbot any more; with O(issue) they were, or would be, removed.
  returned: success
  type: list
  elements: str
  sample: []
services:
  description: Services that were reloaded, or would be.
  returned: success
  type: list
  elements: str
  sample: [nginx]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Account
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificatesError, CertificateStore, Pem

ARGUMENTS: dict[str, Any] = {
    "set": {"type": "str", "required": True},
    "wanted": {"type": "dict", "required": True},
    "services": {"type": "list", "elements": "str", "default": ["nginx"]},
    "issue": {"type": "bool", "default": False},
    "acme_directory": {"type": "str", "default": "https://acme-v02.api.letsencrypt.org/directory"},
    "acme_email": {"type": "str", "default": ""},
    "acme_eab_key_id": {"type": "str", "default": ""},
    "acme_eab_hmac_key": {"type": "str", "default": "", "no_log": True},
    "chains": {"type": "dict", "default": {}},
    "keys": {"type": "dict", "default": {}, "no_log": True},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    given = module.params
    account = Account(given["acme_directory"], given["acme_email"], given["acme_eab_key_id"], given["acme_eab_hmac_key"])
    try:
        keeper = CertificateStore(
            given["set"],
            parse_requests(given["wanted"]),
            given["services"],
            account,
            {name: Pem(chain, given["keys"][name]) for name, chain in given["chains"].items()},
            check_mode=module.check_mode,
        )
        outcome = keeper.issue() if given["issue"] else keeper.place()
    except (CertificatesError, InvalidDataError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=outcome.changed,
        pending=outcome.pending,
        leftover=outcome.leftover,
        services=outcome.services,
        diff={"before": outcome.before, "after": outcome.after} if outcome.changed and module._diff else {},
    )


if __name__ == "__main__":
    main()
