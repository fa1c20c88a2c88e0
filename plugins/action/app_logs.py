"""Action plugin of the module app_logs: displays new lines while it runs, which a module cannot do."""

from __future__ import annotations

import math
import time
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction

#: Seconds between two calls of the module while the app logs.
INTERVAL = 1.0

#: Maximum number of seconds that the module waits for a line.
MAX_WAIT = 10.0


class ActionModule(ModuleAction):
    """Read logs once, or follow them for some time."""

    MODULE = "app_logs"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module; after following, the last result without lines."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        host = str((task_vars or {}).get("inventory_hostname"))
        try:
            seconds = int(arguments.pop("follow", 0))
        except ValueError as error:
            raise AnsibleActionFail(f"follow: must be a number of seconds; found {self._task.args['follow']!r}") from error
        if problem := name_problem(arguments.get("name")):
            raise AnsibleActionFail(problem)
        deadline = Deadline(seconds)
        while True:
            result = self._read(host, arguments, task_vars)
            remaining = deadline.remaining
            if not seconds or result.get("failed"):
                return result
            for line in result["lines"]:
                self._display.display(line["text"])
            if not remaining:
                return result | {"lines": []}
            time.sleep(min(INTERVAL, remaining) if result["lines"] else 0)
            arguments |= {"since": result["position"], "follow": math.ceil(min(MAX_WAIT, remaining))}

    def _read(self, host: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result = self.run_module(arguments, task_vars)
        for line in result.get("lines", ()):
            line["text"] = printable(f"{host} {line.pop('process')}: {line['text']}", line=True)
        return result
