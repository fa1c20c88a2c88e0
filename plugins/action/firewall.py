"""Controller's half of the module firewall: what it sets is kept only if the host can still be reached afterwards."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network.firewall import ANY_SOURCE, parse_rules


class ActionModule(ActionBase):
    """Sets the rules by one connection, and confirms them by another."""

    _supports_check_mode = True
    _requires_connection = True
    _VALID_ARGS = frozenset({"allow", "ssh_port", "ssh_sources", "state", "confirm"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result.

        :raises AnsibleActionFail: with every mistake of the rules, before the host is reached; or when the rules are not kept.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            parse_rules(arguments.get("allow", []), arguments.get("ssh_port", 22), arguments.get("ssh_sources", list(ANY_SOURCE)))
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        # sudo does not pass it on, so whoever logs in is asked for it.
        said = self._low_level_execute_command('echo "$SSH_CONNECTION"', sudoable=False)
        arguments["connection"] = said["stdout"].strip()
        result = self._module(arguments, task_vars)
        if not result.get("tried"):
            return result
        self._connection.reset()
        try:
            kept = self._module(arguments | {"keep": True}, task_vars)
        except AnsibleConnectionFailure as error:
            seconds = arguments.get("confirm", 30)
            raise AnsibleActionFail(
                f"with the new rules no new connection gets through; within {seconds} s the host takes them back by itself, "
                "and the rules of before are in force again"
            ) from error
        return kept if kept.get("failed") else result

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module("funnel.tornado.firewall", arguments, task_vars=task_vars)
        return result
