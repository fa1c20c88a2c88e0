"""Action plugin of the module uv: sends the packages of the wheelhouse that the host lacks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.system import wheelhouse
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import SOURCES, Sources, Uv
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import load_host_state, uv_up_to_date
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, locate


class ActionModule(ModuleAction):
    """Installs uv, from the wheelhouse if there is one."""

    MODULE = "uv"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module, or of the comparison with the host state."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        name = arguments.get("wheelhouse", "")
        if not name:
            state = load_host_state(self._templar, task_vars or {})
            sources = Sources(**{key: arguments[key] for key in SOURCES if key in arguments})
            if uv_up_to_date(state, str(arguments.get("version")), sources):
                return {"changed": False, "path": str(Uv(str(arguments["version"])).program)}
            return self.run_module(arguments, task_vars)
        try:
            directory = locate(name, self._loader.get_basedir(), directory=True)
        except SourceError as error:
            raise AnsibleActionFail(f"wheelhouse: {error}") from error
        packages = wheelhouse.package_hashes(directory)
        if not packages:
            raise AnsibleActionFail(f"wheelhouse: {directory} contains no packages ({', '.join(wheelhouse.PATTERNS)})")
        arguments["packages"] = packages
        result = self.run_module(arguments, task_vars)
        missing = result.pop("needs_packages", None)
        if not missing:
            return result
        with tempfile.NamedTemporaryFile() as archive:
            wheelhouse.pack(directory, missing, Path(archive.name))
            with self.transfer(Path(archive.name)) as path:
                return self.run_module(arguments | {"archive": path}, task_vars)
