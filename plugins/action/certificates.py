"""Controller's half of the module certificates: it checks what is wanted, and the files, before the host is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import NAME, CertificateRequest, parse_requests
from ansible_collections.funnel.tornado.plugins.plugin_utils.certificate_validation import certificate_problems, key_problems
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, locate

#: How a file begins that Ansible Vault has encrypted.
VAULT = b"$ANSIBLE_VAULT"


class ActionModule(ActionBase):
    """Hands the certificates to the module; the keys in an option of their own, which Ansible neither logs nor shows."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result.

        :raises AnsibleActionFail: with every mistake, before anything has changed.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            wanted = parse_requests(arguments.get("wanted") or {})
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        problems = [*account_problems(arguments), *set_problems(arguments)]
        pems, found = read_files(wanted, self._loader)
        if problems or found:
            raise AnsibleActionFail("\n".join([*problems, *found]))
        arguments["wanted"] = {name: asdict(one) for name, one in wanted.items()}
        arguments["chains"] = {name: chain for name, (chain, _key) in pems.items()}
        arguments["keys"] = {name: key for name, (_chain, key) in pems.items()}
        result: dict[str, Any] = self._execute_module("funnel.tornado.certificates", arguments, task_vars=task_vars)
        result.pop("invocation", None)  # the texts of certificates are no help to anybody
        return result


def read_files(wanted: Mapping[str, CertificateRequest], loader: DataLoader) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return chain and key of each certificate that comes from files, and what is wrong with these files."""
    pems: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for name, one in wanted.items():
        if one.provider != "files" or one.certificate is None or one.key is None:
            continue
        try:
            (chain_file, chain), (key_file, key) = _read(one, "certificate", loader), _read(one, "key", loader)
        except SourceError as error:
            problems.append(str(error))
            continue
        about_chain = certificate_problems(chain, one.domains, datetime.now(UTC))
        problems.extend(f"{one.origin}.certificate: {chain_file} {problem}" for problem in about_chain)
        problems.extend(f"{one.origin}.key: {key_file} {problem}" for problem in (*_exposed(key_file), *key_problems(key, chain)))
        pems[name] = (chain, key)
    return pems, problems


def _read(request: CertificateRequest, key: str, loader: DataLoader) -> tuple[Path, str]:
    """Return the file that a certificate's ``key`` names, and its text, decrypted if need be.

    :raises SourceError: with the path of the key.
    """
    try:
        file = locate(str(getattr(request, key)), loader.get_basedir(), directory=False)
        return file, loader.get_text_file_contents(str(file))
    except (SourceError, AnsibleError) as error:
        raise SourceError(f"{request.origin}.{key}: {error}") from error


def _exposed(key_file: Path) -> list[str]:
    """Return what is wrong when others can read a private key; what Ansible Vault has encrypted they may."""
    mode = key_file.stat().st_mode & 0o777
    with key_file.open("rb") as opened:
        encrypted = opened.read(len(VAULT)) == VAULT
    return (
        [f"can be read by other users (mode {mode:04o}); chmod 600, or Ansible Vault"] if mode & 0o077 and not encrypted else []
    )


def set_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the name of the set."""
    objection = NAME.objection(str(arguments.get("set")))
    return [f"certificates_set: {objection}; found {arguments.get('set')!r}"] if objection else []


def account_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Return what is missing of an account with an ACME server."""
    given = [f"certificates_acme_{key}" for key in ("eab_key_id", "eab_hmac_key") if arguments.get(key)]
    return [f"{given[0]}: goes with certificates_acme_eab_{_other(given[0])}, which is missing"] if len(given) == 1 else []


def _other(given: str) -> str:
    return "hmac_key" if given.endswith("key_id") else "key_id"
