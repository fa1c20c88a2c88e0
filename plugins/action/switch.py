"""Action plugin of the switch module: adds the operator, and displays the result of each app with its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction, operator


class ActionModule(ModuleAction):
    """Runs the module and displays the duration of each step."""

    MODULE = "switch"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args) | {"by": operator()}
        names = arguments["apps"] if isinstance(arguments.get("apps"), Mapping) else [arguments.get("name")]
        if problems := list(filter(None, map(name_problem, names))):
            raise AnsibleActionFail("\n".join(problems))
        result = self.run_module(arguments, task_vars)
        host = (task_vars or {}).get("inventory_hostname")
        for name, outcome in result.get("apps", {arguments.get("name"): result}).items():
            if outcome.get("steps"):
                steps = ", ".join(f"{step['name']} {step['seconds']:.2f} s" for step in outcome["steps"])
                release = f"is release {outcome['release']} in slot {outcome['slot']}"
                switched = any(step["name"] == "switch" for step in outcome["steps"])  # else the release was live already
                self._display.display(f"{host}: {name} {release if switched else 'is verified'}: {steps}")
            elif outcome.get("failed") and "apps" in result:
                self._display.error(f"{host}: {outcome['msg']}", wrap_text=False)
        return result
