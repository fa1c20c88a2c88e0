"""The key ``workers`` of an app: processes that serve no requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Range


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """A program that runs beside the processes of the app, and how it stops."""

    command: Annotated[
        str | None,
        Doc(
            "Command, run without a shell in the directory of the source, with the environment of the app. The placeholder "
            "C({process}) is the number of the process. If unset, it is that of the process type in the Procfile."
        ),
    ] = None
    count: Annotated[int, Doc("Number of processes."), Range(0, MAX_PROCESSES)] = 1
    stop_timeout: Annotated[
        int | None,
        Doc("Seconds to finish the work in progress after the stop signal, until it is killed; C(drain) if unset."),
        Range(0, 86_400),
    ] = None
    stop_signal: Annotated[Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"], Doc("Signal that asks it to stop.")] = "TERM"
    stop_group: Annotated[
        bool, Doc("Whether its child processes get the stop signal, too; if not, the main process stops them.")
    ] = False
    singleton: Annotated[
        bool,
        Doc(
            "Whether the worker of the old release ends before that of the new one starts, after the switch. Otherwise, both run "
            "during a switch."
        ),
    ] = False
