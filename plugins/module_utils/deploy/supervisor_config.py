"""Rendering of the configuration of a slot's processes for supervisord."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout, Slot

#: Seconds beyond ``drain`` or ``stop_timeout`` after which supervisord kills a process that does not stop.
STOP_MARGIN = 5


def slot_config(layout: Layout, slot: Slot, manifest: ReleaseManifest, workers: Mapping[str, Worker]) -> str:
    """Return the configuration of a release in a slot: the processes of the site, and those of ``workers``."""
    # A shell of the app's command does not forward signals to its children.
    stop = _stop(manifest.drain, "TERM", group=not manifest.runner)
    programs = [_program(layout, slot, manifest, "", manifest.processes, stop)]
    for name, worker in workers.items():
        timeout = manifest.drain if worker.stop_timeout is None else worker.stop_timeout
        stop = _stop(timeout, worker.stop_signal, group=worker.stop_group)
        programs.append(_program(layout, slot, manifest, name, worker.count, stop))
    return "\n".join(programs)


def _program(layout: Layout, slot: Slot, manifest: ReleaseManifest, worker: str, count: int, stop: str) -> str:
    launcher = layout.release(manifest.id) / "launch.py"
    return (
        f"[program:{layout.group(slot, worker)}]\ncommand={launcher} {slot} %(process_num)d {worker}".rstrip() + "\n"
        "process_name=%(process_num)d\n"
        f"numprocs={count}\n"
        f"user={layout.user}\n"
        "autorestart=true\n"
        "startretries=100\n"  # FATAL is final; each retry waits a second longer than the last, over an hour in total
        f"{stop}"
        "killasgroup=true\n"
        "redirect_stderr=true\n"
        f"stdout_logfile={layout.logs}/{slot}-{worker and f'{worker}-'}%(process_num)d.log\n"
        "stdout_logfile_maxbytes=50MB\n"
        "stdout_logfile_backups=5\n"
    )


def _stop(seconds: int, signal: str, *, group: bool) -> str:
    """Return the lines on how a process is stopped within ``seconds``; ``group`` signals its children, too."""
    return f"stopsignal={signal}\nstopwaitsecs={seconds + STOP_MARGIN}\nstopasgroup={'true' if group else 'false'}\n"
