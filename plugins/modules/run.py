#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Run a command in what is served of an app."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Run a command in the release that is served of an app
version_added: 0.1.0
description:
  - Runs it as the app's user, in the source's directory, with the environment, the secrets and the limits of the app's processes,
    and the programs of its virtual environment first in C(PATH).
  - The command belongs to no slot, so a deploy meanwhile neither waits for it nor ends it. It has no input and no
    terminal, and what it leaves running ends with it.
  - The app's secrets are hidden in what it prints, and control characters are shown as in C(\\x1b).
options:
  name:
    description: The app.
    type: str
    required: true
  command:
    description: A program and its arguments, quoted as for a shell, but run without one.
    type: str
    required: true
  timeout:
    description: Seconds after which it is killed.
    type: int
    default: 3600
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode:
    support: full
    description: Runs nothing, and says in which release it would.
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Make the database fit the code
  funnel.tornado.run:
    name: shop
    command: python -m shop.migrate --to latest
    timeout: 600
  run_once: true
"""

RETURN = r"""
release:
  description: The release that it ran in, or would.
  returned: always
  type: str
  sample: 3f1c0a9be2d4
rc:
  description: Its exit status; negative for the signal that ended it. The task fails unless it is 0.
  returned: when it ran to its end
  type: int
output:
  description: What it printed, on both of its outputs. After a failure it is in the message.
  returned: success, but for check mode
  type: str
"""

import json
import resource
import shlex

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import MIN_SECRET_LENGTH
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable, printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError, query

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "command": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 3600},
}


def main() -> None:
    """Run the command, unless in check mode."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    layout, timeout = Layout(module.params["name"]), module.params["timeout"]
    release = layout.live_release()
    if release is None:
        module.fail_json(msg=f"{layout.app}: no release is live on this host", release="")
    launcher = layout.release(release) / "launch.py"
    try:
        argv = [str(launcher), "--run", *words(module.params["command"])]
        if module.check_mode:
            module.exit_json(changed=True, release=release)
        hidden = secrets(layout, release)
        module.no_log_values.update(hidden, map(printable, hidden))
        done = isolation.run(
            layout.user,
            argv,
            directory=layout.release(release),
            environment={},
            timeout=timeout,
            description=f"Command of {layout.app}",
            private_tmp=False,
            open_files=limit_of_supervisord(),
        )
    except (CommandError, OSError, ServiceError, ValueError) as error:
        module.fail_json(msg=printable_message(f"{layout.app}: {error}"), release=release)
    if done.status != 0:
        failure = f"{layout.app}: the command failed with exit status {done.status}:\n{done.output}"
        module.fail_json(msg=printable_message(failure.rstrip(":\n")), changed=True, release=release, rc=done.status)
    module.exit_json(changed=True, release=release, rc=done.status, output=printable(done.output))


def words(command: str) -> list[str]:
    """Return a program and its arguments.

    :raises ValueError: when there is none, or a quote is not closed.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command: {str(error).lower()}; found {command!r}") from error
    if not argv:
        raise ValueError(f"command: must be a program and its arguments; found {command!r}")
    return argv


def secrets(layout: Layout, release: str) -> set[str]:
    """Return what is hidden of the output: the release's secrets, but for those that stand in many words."""
    values = json.loads((layout.release(release) / "secrets.json").read_text()).values()
    return {value for value in values if len(value) >= MIN_SECRET_LENGTH}


def limit_of_supervisord() -> int:
    """Return how many files those that supervisord starts may have open at first."""
    soft, _most = resource.prlimit(query("supervisor").main_pid, resource.RLIMIT_NOFILE)
    return soft


if __name__ == "__main__":
    main()
