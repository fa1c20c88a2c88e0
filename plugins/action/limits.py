"""Controller's half of the module limits: does not ask a host that has told it that all is given."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import ARGUMENTS, Limits
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import limits_up_to_date, load_host_state


class ActionModule(ActionBase):
    """Gives limits to a host."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, or the same of what is known."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        state = load_host_state(self._templar, task_vars or {})
        if limits_up_to_date(state, Limits(**arguments, kernel=state.kernel)):
            return {"changed": False, "files": []}
        result: dict[str, Any] = self._execute_module("funnel.tornado.limits", arguments, task_vars=task_vars)
        return result
