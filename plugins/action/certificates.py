"""Action plugin of the certificates module: validates requests and files on the controller before connecting to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import NAME, CertificateRequest, parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.plugin_utils.certificate_validation import (
    account_problems,
    certificate_problems,
    key_problems,
)
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, locate

#: Header of a file encrypted with Ansible Vault.
VAULT_HEADER = b"$ANSIBLE_VAULT"


class ActionModule(ModuleAction):
    """Passes the certificates to the module; the keys in a separate option, which Ansible neither logs nor displays."""

    MODULE = "certificates"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result.

        :raises AnsibleActionFail: with all problems, before anything changes.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            requests = parse_requests(arguments.get("wanted") or {})
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        pems, file_problems = read_files(requests, self._loader)
        if problems := [
            *account_problems(arguments),
            *dns_problems(arguments, requests),
            *set_problems(arguments),
            *file_problems,
        ]:
            raise AnsibleActionFail("\n".join(problems))
        arguments["wanted"] = {name: asdict(request) for name, request in requests.items()}
        arguments["chains"] = {name: chain for name, (chain, _key) in pems.items()}
        arguments["keys"] = {name: key for name, (_chain, key) in pems.items()}
        result = self.run_module(arguments, task_vars)
        result.pop("invocation", None)  # it would fill the output with PEM texts
        return result


def read_files(requests: Mapping[str, CertificateRequest], loader: DataLoader) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return chain and key of each request with provider ``files``, and the problems of these files."""
    pems: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for name, request in requests.items():
        if request.provider != "files" or request.certificate is None or request.key is None:
            continue
        try:
            (chain_file, chain), (key_file, key) = _read(request, "certificate", loader), _read(request, "key", loader)
        except SourceError as error:
            problems.append(str(error))
            continue
        chain_problems = certificate_problems(chain, request.domains, datetime.now(UTC))
        problems.extend(f"{request.origin}.certificate: {chain_file} {problem}" for problem in chain_problems)
        all_key_problems = (*_mode_problems(key_file), *key_problems(key, chain))
        problems.extend(f"{request.origin}.key: {key_file} {problem}" for problem in all_key_problems)
        pems[name] = (chain, key)
    return pems, problems


def _read(request: CertificateRequest, key: str, loader: DataLoader) -> tuple[Path, str]:
    """Return the path and the decrypted text of the file in the ``key`` of a request.

    :raises SourceError: with the path of the key.
    """
    try:
        file = locate(str(getattr(request, key)), loader.get_basedir(), directory=False)
        return file, loader.get_text_file_contents(str(file))
    except (SourceError, AnsibleError) as error:
        raise SourceError(f"{request.origin}.{key}: {error}") from error


def _mode_problems(key_file: Path) -> list[str]:
    """Return the problem of a private key that other users can read, unless Ansible Vault has encrypted it."""
    mode = key_file.stat().st_mode & 0o777
    with key_file.open("rb") as opened:
        encrypted = opened.read(len(VAULT_HEADER)) == VAULT_HEADER
    if not mode & 0o077 or encrypted:
        return []
    return [f"is readable by other users (mode {mode:04o}); chmod 600 or use Ansible Vault"]


def dns_problems(arguments: Mapping[str, Any], requests: Mapping[str, CertificateRequest]) -> list[str]:
    """Return the problems of the DNS plugin, and of certificates that require one."""
    try:
        dns = parse_dns(arguments.get("acme_dns"))
    except InvalidDataError as error:
        return error.problems
    needing = [request.origin for request in requests.values() if request.challenge == "dns"]
    return [f"{origin}.challenge: dns requires certificates_acme_dns, which is missing" for origin in needing if dns is None]


def set_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Return the problem of an invalid set name."""
    violation = NAME.violation(str(arguments.get("set")))
    return [f"certificates_set: {violation}; found {arguments.get('set')!r}"] if violation else []
