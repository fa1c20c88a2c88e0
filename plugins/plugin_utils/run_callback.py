"""The callback of the playbooks that change apps: collects results, displays the report of the run, and sends notifications.

A callback sees the results of all tasks without further tasks, and the end of a run that fails at any task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.play import Play
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE as APPS
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils import notifications
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import operator
from ansible_collections.funnel.tornado.plugins.plugin_utils.notifications import Notifier, parse_notifications
from ansible_collections.funnel.tornado.plugins.plugin_utils.run_report import RunReport

#: Variable of a play that names the operation, such as ``deploy``; other plays are not reported.
OPERATION = "__funnel_operation"

COLLECTION = "funnel.tornado"

#: Modules that change the configuration of a host outside of a service.
PROVISIONING = frozenset({"limits", "packages", "program", "uv"})


class CallbackModule(CallbackBase):
    """Reports the run of a playbook that changes apps."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "funnel_report"

    def __init__(self) -> None:
        """Wait for a play of an operation."""
        super().__init__()
        self.report: RunReport | None = None
        self.notifier: Notifier | None = None

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Begin the report at the first play of an operation."""
        operation = play.vars.get(OPERATION)
        if self.report is not None or not operation:
            return
        manager = play.get_variable_manager()
        hosts = manager._inventory.get_hosts("app_hosts")
        variables = manager.get_vars(play=play, host=hosts[0] if hosts else None)
        templar = Templar(loader=play.get_loader(), variables=variables)

        def value(name: str, default: Any) -> Any:
            try:
                return templar.template(variables[name]) if name in variables else default
            except AnsibleError:
                return default  # the check of the inventory reports it

        named = [name.strip() for name in str(value("app", "")).split(",") if name.strip()]
        apps = value(APPS, {})
        self.report = RunReport(
            operation,
            operator(),
            apps=named or (list(map(str, apps)) if isinstance(apps, Mapping) else []),
            hosts=[host.get_name() for host in hosts],
            check=bool(variables.get("ansible_check_mode")),
        )
        if not self.report.check:
            self._start_notifier(value(notifications.VARIABLE, []))

    def _start_notifier(self, entries: object) -> None:
        try:
            configured = parse_notifications(entries or [])
        except InvalidDataError as error:
            self._warn(error.problems)
            return
        if configured and self.report:
            self.notifier = Notifier(configured, self.report.message("failure", interrupted=True))
            self.notifier.send(self.report.message("start"))

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Add the result of a task."""
        self._add(result)

    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """Add the result of one item of a loop."""
        self._add(result)

    def v2_runner_item_on_failed(self, result: CallbackTaskResult) -> None:
        """Add the failure of one item of a loop."""
        self._add(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, *_flags: bool, **options: bool) -> None:
        """Add the failure of a task."""
        self._add(result)
        if self.report and not options.get("ignore_errors"):
            self.report.add_failure(result.host.get_name(), str(result.result.get("msg", "")))

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Add an unreachable host."""
        if self.report:
            self.report.add_unreachable(result.host.get_name())

    def _add(self, result: CallbackTaskResult) -> None:
        """Add the result of a build, a switch or the configuration of a service."""
        report, task, found = self.report, result.task, result.result
        if report is None or (task.loop and "results" in found):
            return
        name, host = task.action, result.host.get_name()
        if name == f"{COLLECTION}.release":
            for built in found.get("results", [found]):
                if "item" in built:
                    report.add_release(host, str(built["item"]), built)
        elif name == f"{COLLECTION}.switch" and "apps" in found:
            report.add_switches(host, found["apps"])
            if self.notifier and any(outcome.get("undone") for outcome in found["apps"].values()):
                self.notifier.send(report.message("undo"))
        elif name == f"{COLLECTION}.file_set" and (report.check or not task.check_mode):  # not the check before the switch
            files = (*found.get("files", ()), *found.get("removed", ()))
            report.add_service(host, found.get("service_name", ""), found.get("service", ""), files)
        elif name.removeprefix(f"{COLLECTION}.") in PROVISIONING and found.get("changed"):
            report.add_change(host)

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Display the report and send the last notification."""
        if self.report is None:
            return
        self.report.failed = bool(stats.failures or stats.dark)
        if "json" not in constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK"):  # whose output is for a program
            for line in self.report.table():
                self._display.display(line)
        if self.notifier:
            self.notifier.send(self.report.message(self.report.outcome))
            self._warn(self.notifier.close())
        self.report = self.notifier = None

    def _warn(self, problems: list[str]) -> None:
        for problem in problems:
            self._display.warning(problem)
