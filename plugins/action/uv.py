"""Controller's half of the module uv: finds the wheelhouse, and sends what the host lacks of it in one go."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.module_utils.system import wheelhouse
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import SOURCES, Sources, Uv
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import load_host_state, uv_up_to_date
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, locate


class ActionModule(ActionBase):
    """Installs uv; with a wheelhouse, from there."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        name = arguments.get("wheelhouse", "")
        if not name:
            state = load_host_state(self._templar, task_vars or {})
            sources = Sources(**{key: arguments[key] for key in SOURCES if key in arguments})
            if uv_up_to_date(state, str(arguments.get("version")), sources):
                return {"changed": False, "path": str(Uv(str(arguments["version"])).program)}
            return self._module(arguments, task_vars)
        try:
            directory = locate(name, self._loader.get_basedir(), directory=True)
        except SourceError as error:
            raise AnsibleActionFail(f"wheelhouse: {error}") from error
        packages = wheelhouse.package_hashes(directory)
        if not packages:
            raise AnsibleActionFail(f"wheelhouse: {directory} has no packages ({', '.join(wheelhouse.PATTERNS)})")
        arguments["packages"] = packages
        result = self._module(arguments, task_vars)
        missing = result.pop("needs_packages", None)
        if not missing:
            return result
        temporary = self._make_tmp_path()
        try:
            with tempfile.NamedTemporaryFile() as archive:
                wheelhouse.pack(directory, missing, Path(archive.name))
                path = self._connection._shell.join_path(temporary, "packages.tar")
                self._transfer_file(archive.name, path)
            return self._module(arguments | {"archive": path}, task_vars)
        finally:
            self._remove_tmp_path(temporary)

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module("funnel.tornado.uv", arguments, task_vars=task_vars)
        return result
