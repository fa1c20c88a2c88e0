"""Action plugin of the module packages: skips hosts on which the packages are known to be installed."""

from __future__ import annotations

from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import select_versions
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction

#: Variable with the result of an earlier query of packages.
VARIABLE = "__funnel_packages"


class ActionModule(ModuleAction):
    """Installs and upgrades packages."""

    MODULE = "packages"
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module, or of an earlier query."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        packages = self._templar.resolve_variable_expression(VARIABLE) if VARIABLE in (task_vars or {}) else {}
        if arguments.get("state", "present") == "present" and (
            versions := select_versions(arguments.get("name"), packages.get("versions", {}))
        ):
            return {"changed": False, "installed": [], "versions": versions, "codename": packages["codename"]}
        return self.run_module(arguments, task_vars)
