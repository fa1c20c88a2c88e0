"""Controller side of the module preflight: validates the variables, then checks the apps against the state of the host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load

from ansible_collections.funnel.tornado.plugins.action.certificates import read_files
from ansible_collections.funnel.tornado.plugins.action.release import (
    archive_problems,
    entry_digest,
    release_inputs,
    with_versions,
)
from ansible_collections.funnel.tornado.plugins.module_utils.app.coexistence import (
    Others,
    Proxy,
    coexistence_problems,
    kept_sites,
    nginx_warnings,
    supervisor_warnings,
    unlisted_warnings,
)
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, app_certificates, certificate_requests
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import (
    HostFacts,
    host_problems,
    load,
    memory_warnings,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import Listener
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError, closest_match, parse_each
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import ExistingNginx
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import Upstream
from ansible_collections.funnel.tornado.plugins.module_utils.sites.name_resolution import resolution_problems
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import server_problems
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import DEFAULT_OPEN_FILES, Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import ExistingPrograms
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import DropIn
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import VARIABLE as DNS
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.plugin_utils.app_selection import unknown_apps
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import KEY
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction

ROLES = Path(__file__).parents[2] / "roles"


class ActionModule(ModuleAction):
    """Fails with all mistakes in the variables at once, before anything changes."""

    MODULE = "preflight"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the host state; fail with every mistake in the variables."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "apps": {"type": "raw", "required": True},
                "names": {"type": "list", "elements": "str", "default": []},
                "removed": {"type": "list", "elements": "str", "default": []},
                "versions": {"type": "dict", "default": {}},
                "roles": {"type": "list", "elements": "str", "default": []},
                "builds": {"type": "bool", "default": True},
            }
        )
        entries = with_versions(arguments["apps"], arguments["versions"])
        problems = misspelled_variables(variables)
        problems += (problem for role in arguments["roles"] for problem in self._role_problems(role, variables))
        problems += self._resolution_problems(variables)
        apps: dict[str, App] = {}
        dns_packages: set[str] = set()
        try:
            apps = load(entries)
            problems += read_files(parse_requests(app_certificates(apps)), self._loader)[1]
            dns_packages = self._dns_packages(apps, variables)
        except InvalidDataError as error:
            problems += error.problems
            if isinstance(error.partial, dict):
                apps = error.partial
        names = [str(name) for name in arguments["names"]]
        built = [app for name, app in apps.items() if name in names or not names] if arguments["builds"] else []
        inputs, source_problems = release_inputs(built, self._loader.get_basedir())
        problems += [*source_problems, *self._unknown_apps(names, entries, variables)]
        self._fail_on([*problems, *archive_problems(built, self._loader.get_basedir())] if problems else [])
        packages = sorted({package for app in apps.values() for package in app.packages} | dns_packages)
        options = {"key": KEY, "packages": packages, "builds": arguments["builds"], "releases": json.dumps(inputs)}
        host = self.run_module({"apps": {}, **options}, variables)
        if host.get("failed"):
            return host
        self._fail_on(
            f"{DNS}.plugin: no package source of this host has {package}; choose another plugin, or add a source that has it"
            for package in dns_packages.intersection(host["unavailable_packages"])
        )
        for name, release in host["host_state"]["releases"].items():
            release["entry"] = entry_digest(apps[name])
        settled = host["host_state"]["releases"]
        deployed = [app for app in built if app.name not in settled]
        host["live"] = [name for name in host["live"] if name not in arguments["removed"]]
        return self._compare(apps, deployed, host, variables)

    def _compare(
        self, apps: Mapping[str, App], deployed: Sequence[App], host: dict[str, Any], variables: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the host state with warnings; fail with every conflict of the apps with the host and what else it serves.

        ``deployed`` are the apps of the run whose live releases are not up to date.
        """
        others = Others(
            ExistingNginx.from_data(host["nginx"]),
            [Listener(**listener) for listener in host["listeners"]],
            host["live"],
            host["users"],
            ExistingPrograms(**host["programs"]),
            host["balanced"],
            [name for name, state in host["host_state"]["services"].items() if state["masked"]],
            host["unprivileged_port"],
        )
        facts = HostFacts(
            host["cpus"],
            host["open_files"],
            frozenset(host["names"]),
            frozenset(host["unavailable_packages"]),
            balanced=bool(variables["groups"].get("balancers")),
        )
        capacity, limit = Capacity(**host["capacity"]), self._variable("limits_open_files", variables)
        self._fail_on(
            [
                *host_problems(apps, facts),
                *coexistence_problems(
                    apps,
                    others,
                    self._proxy(variables),
                    host["cpus"],
                    unrestricted=self._variable("supervisor_hardening_except", variables) or (),
                ),
                *archive_problems(deployed, self._loader.get_basedir()),
                *filter(None, [capacity.problem(int(limit)) if limit else "", self._minfds_problem(host, variables)]),
            ]
        )
        name = variables.get("inventory_hostname", "")
        warnings = [
            *unlisted_warnings(apps, others, name),
            *nginx_warnings(others.nginx, self._proxy(variables), name),
            *supervisor_warnings(others.programs, name),
            *memory_warnings(deployed, host["memory"]["available"], host["memory"]["used"], facts, name),
        ]
        if not limit and host["open_files"] < DEFAULT_OPEN_FILES:
            warnings.append(f"{name} allows {host['open_files']} open files per process, and so limits_open_files is that")
        return host | {"unlisted": kept_sites(apps, others), "warnings": [*host.get("warnings", ()), *warnings]}

    def _minfds_problem(self, host: dict[str, Any], variables: dict[str, Any]) -> str:
        """Return why a drop-in of the host would keep supervisord from starting again."""
        given = [self._variable(name, variables) for name in ("supervisor_minfds", "limits_open_files")]
        minfds = next((int(value) for value in given if value), min(host["open_files"], DEFAULT_OPEN_FILES))
        found = host["supervisor_limit"]
        return DropIn(**found).problem(minfds, Capacity(**host["capacity"])) if found else ""

    def _unknown_apps(self, names: list[str], entries: object, variables: dict[str, Any]) -> list[str]:
        """Return a message for each of ``names`` that no host has: hosts may have different apps."""
        own = list(entries) if isinstance(entries, dict) else []
        if {*names} <= {*own}:
            return []
        others = [variables["hostvars"][host].get(VARIABLE) for host in variables["groups"].get("app_hosts", ())]
        known = [*own, *(name for apps in others if isinstance(apps, Mapping) for name in apps)]
        return unknown_apps(names, dict.fromkeys(known))

    def _proxy(self, variables: dict[str, Any]) -> Proxy:
        """Return the reverse proxy with its addresses."""
        name = str(self._variable("app_proxy", variables) or "nginx")
        listen = {f"{name}_listen": ["80", "[::]:80"], f"{name}_listen_tls": ["443", "[::]:443"]}
        given = {variable: self._variable(variable, variables) for variable in listen}
        return Proxy(name, {variable: listen[variable] if given[variable] is None else given[variable] for variable in listen})

    def _dns_packages(self, apps: Mapping[str, App], variables: dict[str, Any]) -> set[str]:
        """Return the package of the DNS plugin if this host terminates TLS and gets certificates by DNS."""
        requests = certificate_requests(apps.values()).values() if self._variable("app_tls", variables) in (None, True) else ()
        dns = parse_dns(self._variable(DNS, variables)) if any(request.challenge == "dns" for request in requests) else None
        return {dns.package} if dns else set()

    def _variable(self, name: str, variables: dict[str, Any]) -> Any:
        """Return the value of a variable of the inventory; None if it is not set."""
        return self._templar.template(variables[name]) if name in variables else None

    def _role_problems(self, role: str, variables: dict[str, Any]) -> list[str]:
        """Validate the variables of a role against its argument specs; return Ansible's error messages."""
        specs = yaml_load((ROLES / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        options = specs["main"]["options"]
        given = self._templar.template({name: variables[name] for name in options if name in variables})
        return list(ArgumentSpecValidator(options).validate(given).error_messages)

    def _resolution_problems(self, variables: dict[str, Any]) -> list[str]:
        """Return the names in the variables of the role nginx that could keep it from starting."""
        problems = list(resolution_problems(str(self._variable("nginx_extra", variables) or ""), "nginx_extra"))
        upstreams = parse_each(Upstream, self._variable("nginx_upstreams", variables) or {}, "nginx_upstreams", problems)
        return problems + [text for key, each in upstreams.items() for text in server_problems(each, f"nginx_upstreams.{key}")]

    def _fail_on(self, problems: Iterable[str]) -> None:
        if lines := list(problems):
            raise AnsibleActionFail("\n".join(["the inventory has mistakes; nothing was changed", *lines]))


def misspelled_variables(variables: dict[str, Any]) -> list[str]:
    """Return a message for each variable whose name resembles ``tornado_apps``: Ansible would ignore it silently."""
    names = sorted(name for name in variables if name != VARIABLE)
    prefixed = [name for name in names if name.startswith("tornado_")]
    similar = [name for name in names if name not in prefixed and closest_match(name, [VARIABLE])]
    return [f"{name}: no such variable; did you mean {VARIABLE}?" for name in prefixed + similar]
