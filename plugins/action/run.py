"""Controller side of the module run: displays the output of the command."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction


class ActionModule(ModuleAction):
    """Runs the module, and displays the output of the command below a line with the host and the command."""

    MODULE = "run"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if problem := name_problem(arguments.get("name")):
            raise AnsibleActionFail(problem)
        result = self.run_module(arguments, task_vars)
        if not result.get("failed"):
            host = (task_vars or {}).get("inventory_hostname")
            run = f"{arguments['command']}, in release {result['release']} of {arguments['name']}"
            text = f"{host}: would run {run}" if self._task.check_mode else f"{host}: {run}\n{result['output']}"
            self._display.display(printable_message(text.rstrip()))
        return result
