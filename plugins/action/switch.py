"""Action plugin of the switch module: adds the operator, and displays the steps with their durations."""

from __future__ import annotations

import getpass
import platform
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction


class ActionModule(ModuleAction):
    """Runs the module and displays the duration of each step."""

    MODULE = "switch"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args) | {"by": operator()}
        if problem := name_problem(arguments.get("name")):
            raise AnsibleActionFail(problem)
        result = self.run_module(arguments, task_vars)
        if result.get("steps"):
            steps = ", ".join(f"{step['name']} {step['seconds']:.2f} s" for step in result["steps"])
            host = (task_vars or {}).get("inventory_hostname")
            self._display.display(f"{host}: {arguments['name']} is release {result['release']} in slot {result['slot']}: {steps}")
        return result


def operator() -> str:
    """Return the operator of this run as ``user@controller``."""
    return f"{getpass.getuser()}@{platform.node()}"
