"""Controller's half of the module packages: does not ask a host again for what it has just said that it has."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import select_versions

#: The variable of what the host has said already that it has.
KNOWN = "__funnel_packages"


class ActionModule(ActionBase):
    """Installs and upgrades packages."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, or the same of what is known."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        known = self._templar.resolve_variable_expression(KNOWN) if KNOWN in (task_vars or {}) else {}
        if arguments.get("state", "present") == "present" and (
            versions := select_versions(arguments.get("name"), known.get("versions", {}))
        ):
            return {"changed": False, "installed": [], "versions": versions, "codename": known["codename"]}
        result: dict[str, Any] = self._execute_module("funnel.tornado.packages", arguments, task_vars=task_vars)
        return result
