"""Action plugin group_outdated: compares a host with the later tasks of the play, and groups it if they would contact it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.playbook.block import Block
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import VARIABLE as HOST_STATE
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import DriftError, ModuleAction


class ActionModule(ActionBase):
    """Runs the later tasks up to the first that needs the host, all in the process of this one."""

    _VALID_ARGS = frozenset({"key"})
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the group of an outdated host with the name of the task that needs it."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(argument_spec={"key": {"type": "str", "required": True}})
        variables = dict(task_vars or {})
        if HOST_STATE in variables:  # nothing changes the host meanwhile, so once is enough
            variables[HOST_STATE] = self._templar.resolve_variable_expression(HOST_STATE)
        needed_by = self._first_task(variables)
        if not needed_by:
            return {"changed": False, "task": ""}
        return {"changed": False, "task": needed_by, "add_group": arguments["key"], "parent_groups": ["all"]}

    def _first_task(self, variables: dict[str, Any]) -> str:
        """Return the name of the first task that needs the host; empty if none does."""
        static = iter(static_tasks(self._task.play.tasks))
        own = self._task._uuid
        if not any(task._uuid == own for task in static):  # consumes the earlier tasks and this one
            return "unknown"
        for task in static:
            try:
                result = self._compare(task, variables)
            except (AnsibleError, DriftError):  # the task itself will report the error
                return str(task.get_name())
            if task.register:
                variables[task.register] = result
        return ""

    def _compare(self, task: Task, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a task that does not need the host.

        :raises DriftError: if it does.
        """
        if task.action in ("meta", "ansible.builtin.meta"):
            return {}
        extra = self._task.play.get_variable_manager().extra_vars
        own = variables | task.get_vars() | extra
        templar = self._templar.copy_with_new_env(available_variables=own)
        if task.loop is None:
            return self._compare_once(task, task.args, own)
        if task.loop_control and task.loop_control.loop_var != "item":
            raise DriftError(task.action)
        arguments = task.args
        results = [
            self._compare_once(task, arguments, own | {"item": item}) | {"item": item} for item in templar.template(task.loop)
        ]
        return {"changed": False, "results": results}

    def _compare_once(self, task: Task, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        templar = self._templar.copy_with_new_env(available_variables=variables)
        if not all(map(templar.evaluate_conditional, task.when)):
            return {"changed": False, "skipped": True}
        task.args = templar.template(arguments)
        handler = self._shared_loader_obj.action_loader.get(
            task.action,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        if not isinstance(handler, ModuleAction):
            raise DriftError(task.action)
        handler.compares = True
        result: dict[str, Any] = handler.run(task_vars=variables)
        if result.get("failed"):
            raise DriftError(task.action)
        return result


def static_tasks(entries: Sequence[Block | Task]) -> Iterator[Task]:
    """Yield the tasks of a play that are known before it runs, in their order."""
    for entry in entries:
        if isinstance(entry, Block):
            yield from static_tasks(entry.block)
        else:
            yield entry
