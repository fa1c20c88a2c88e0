"""Action plugin of the module file_set: renders the templates, and skips hosts whose collected state is up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.template import trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.system.file_entries import parse_files
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, FileSetError
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import files_up_to_date, load_host_state
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction


class ActionModule(ModuleAction):
    """Applies files and templates to a host."""

    MODULE = "file_set"

    _VALID_ARGS = frozenset({"root", "files", "owns", "absent", "keep", "later", "check", "service", "front_doors", "releases"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module, or of the comparison with the host state.

        :raises AnsibleActionFail: if an entry is invalid or a template cannot be rendered, before the host is contacted.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        files = arguments.get("files") or {}
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise AnsibleActionFail("files: must be a dictionary of path to a dictionary of template, content, link, mode, ...")
        rendered = {str(path): self.render(str(path), entry, task_vars or {}) for path, entry in files.items()}
        try:
            parsed = parse_files(rendered)
        except FileSetError as error:
            raise AnsibleActionFail(str(error)) from error
        state = load_host_state(self._templar, task_vars or {})
        globs = (arguments.get(option) or () for option in ("owns", "absent", "keep"))
        file_set = FileSet(Path(arguments.get("root") or "/"), parsed, *globs)
        service = arguments.get("service") or {}
        if isinstance(service, dict) and files_up_to_date(state, file_set, service):  # otherwise the module reports the error
            return {"changed": False, "files": [], "removed": [], "service": ""}
        # Secrets are passed in an option with no_log.
        arguments["secret_contents"] = {path: entry.pop("content") for path, entry in rendered.items() if entry.get("secret")}
        arguments["files"] = rendered
        name = service.get("name", "") if isinstance(service, dict) else ""
        return {"service_name": name} | self.run_module(arguments, task_vars)

    def render(self, path: str, entry: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return an entry with its ``template`` and ``vars`` replaced by the rendered ``content``."""
        entry = dict(entry)
        variables = entry.pop("vars", {})
        if "template" not in entry:
            return entry
        if "content" in entry:
            raise AnsibleActionFail(f"files.{path}: set either template or content, not both")
        name = entry.pop("template")
        try:
            source = Path(self._loader.path_dwim_relative_stack(self._task.get_search_path(), "templates", name))
            content = self._loader.get_text_file_contents(str(source))
            searchpath = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), str(source.parent)]
            templar = self._templar.copy_with_new_env(
                searchpath=[found for base in searchpath for found in (str(Path(base) / "templates"), base)],
                available_variables={"ansible_managed": "Ansible managed", **task_vars, **variables},
            )
            # Indented block tags must not indent their output.
            overrides = {"trim_blocks": True, "lstrip_blocks": True}
            text = templar.template(trust_as_template(content), escape_backslashes=False, overrides=overrides)
        except AnsibleError as error:
            raise AnsibleActionFail(f"files.{path}: template {name}: {error}") from error
        return {**entry, "content": str(text)}
