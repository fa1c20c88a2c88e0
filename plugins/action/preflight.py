"""Controller's half of the module preflight: judges the variables first, and asks the host only what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.action.certificates import read_files
from ansible_collections.funnel.tornado.plugins.action.release import local_source, with_versions
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import Host, app_certificates, load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError, nearest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import KEY

ROLES = Path(__file__).parents[2] / "roles"


class ActionModule(ActionBase):
    """Refuses what cannot work, with all its reasons at once, before anything has changed."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the host has; fail with every mistake of the variables."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "apps": {"type": "raw", "required": True},
                "names": {"type": "list", "elements": "str", "default": []},
                "versions": {"type": "dict", "default": {}},
                "roles": {"type": "list", "elements": "str", "default": []},
            }
        )
        apps = with_versions(arguments["apps"], arguments["versions"])
        wrong = [problem for role in arguments["roles"] for problem in self._wrong_variables(role, variables)]
        self._refuse([*misspelt(variables), *wrong, *self._wrong_files(apps), *unknown(arguments["names"], apps)])
        host: dict[str, Any] = self._execute_module("funnel.tornado.preflight", {"apps": {}, "key": KEY}, task_vars=variables)
        if not host.get("failed"):
            found = Host(host["cpus"], host["open_files"], frozenset(host["names"]))
            self._refuse(attempt(apps, found))
        return host

    def _wrong_variables(self, role: str, variables: dict[str, Any]) -> list[str]:
        """Return what is wrong with the variables of a role, in Ansible's own words."""
        options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        given = self._templar.template({name: variables[name] for name in options if name in variables})
        return list(ArgumentSpecValidator(options).validate(given).error_messages)

    def _wrong_files(self, apps: object) -> list[str]:
        """Return what is wrong with the entries or, if that is nothing, with the controller's files that they name."""
        problems = attempt(apps, None)
        if problems:
            return problems
        entries = load(apps)
        _texts, problems = read_files(parse_requests(app_certificates(entries)), self._loader)
        for app in entries.values():
            try:
                local_source(app, self._loader.get_basedir())
            except AnsibleActionFail as error:
                problems.append(error.message)
        return problems

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise AnsibleActionFail("\n".join(["the inventory has mistakes; nothing was changed", *problems]))


def attempt(apps: object, host: Host | None) -> list[str]:
    """Return the mistakes of the entries."""
    try:
        load(apps, host)
    except InvalidDataError as error:
        return error.problems
    return []


def unknown(names: list[str], apps: object) -> list[str]:
    """Name each app that is asked for and has no entry."""
    known = list(apps) if isinstance(apps, dict) else []
    found = []
    for name in names:
        if name not in known:
            near = nearest(name, known)
            right = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            found.append(f"{VARIABLE}: no such app {name}; {right}")
    return found


def misspelt(variables: dict[str, Any]) -> list[str]:
    """Name each variable that looks like the collection's and is not: it would be left aside in silence."""
    strange = sorted(name for name in variables if name.startswith("tornado_") and name != VARIABLE)
    near = (name for name in sorted(variables) if name not in strange and nearest(name, [VARIABLE]) and name != VARIABLE)
    return [f"{name}: no such variable; did you mean {VARIABLE}?" for name in [*strange, *near]]
