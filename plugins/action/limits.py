"""Action plugin of the module limits: skips hosts whose collected state is up to date."""

from __future__ import annotations

from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import ARGUMENTS, Limits
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import limits_up_to_date, load_host_state
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction


class ActionModule(ModuleAction):
    """Applies limits to a host."""

    MODULE = "limits"
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module, or of the comparison with the host state."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        state = load_host_state(self._templar, task_vars or {})
        if limits_up_to_date(state, Limits(**arguments, kernel=state.kernel)):
            return {"changed": False, "files": []}
        return self.run_module(arguments, task_vars)
