"""Action plugin of the firewall module: confirms new rules by a new connection, otherwise the host rolls them back."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network.firewall import ANY_SOURCE, parse_rules
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction


class ActionModule(ModuleAction):
    """Applies the rules over one connection and confirms them over another."""

    MODULE = "firewall"
    _VALID_ARGS = frozenset({"allow", "ssh_port", "ssh_sources", "state", "confirm"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result.

        :raises AnsibleActionFail: with all problems of the rules before connecting to the host, or if they are not confirmed.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            parse_rules(arguments.get("allow", []), arguments.get("ssh_port", 22), arguments.get("ssh_sources", list(ANY_SOURCE)))
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        # sudo does not preserve the variable, so it is read as the login user.
        echoed = self._low_level_execute_command('echo "$SSH_CONNECTION"', sudoable=False)
        arguments["connection"] = echoed["stdout"].strip()
        result = self.run_module(arguments, task_vars)
        if not result.get("tried"):
            return result
        self._connection.reset()
        try:
            confirmed = self.run_module(arguments | {"keep": True}, task_vars)
        except AnsibleConnectionFailure as error:
            seconds = arguments.get("confirm", 30)
            raise AnsibleActionFail(
                f"no new connection succeeds with the new rules; within {seconds} s the host rolls back to the previous rules"
            ) from error
        return confirmed if confirmed.get("failed") else result
