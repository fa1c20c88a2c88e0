"""The last check of a switch: whether the reverse proxy serves the release at the front door of the app."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import status_codes
from ansible_collections.funnel.tornado.plugins.module_utils.core.atomic import replace_link
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import existing_nginx
from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    HEALTH_HEADER,
    HEALTH_URL,
    HEALTHY,
    RELEASE_HEADER,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import SITES
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: Files with the front doors of apps, by the reverse proxy that serves them.
FILES = {"nginx": f"etc/nginx/{SITES}/app.{{app}}.door", "haproxy": "etc/haproxy/doors/{app}.door"}

#: Seconds until the front door must serve a new release. HAProxy considers a process up after two checks.
TIMEOUT = {"nginx": 5.0, "haproxy": 15.0}

#: Seconds until an answer must arrive, longer than the health location of nginx waits for two processes.
ANSWER_SECONDS = 12.0

INTERVAL = 0.2

#: Statuses with which a reverse proxy reports that it got no answer from a process.
GATEWAY_ERRORS = (502, 503, 504)

ERROR_LOG = "var/log/nginx/error.log"


def publish_health_check(layout: Layout, slot: str, manifest: ReleaseManifest) -> None:
    """Write the health check of a release into its slot, where nginx finds it from the switch on, without a reload.

    nginx resolves the link ``health`` at each check and reads release, host, status codes and path from the resulting path.
    """
    headers = {name.lower(): value for name, value in manifest.health.headers.items()}
    host = headers.pop("host", manifest.host)
    codes = "".join(f"{prefix}," for prefix in status_codes.prefixes(manifest.health.status))
    spelled = Path("check", manifest.id, host, codes, f"{manifest.health.path[1:]}.path")
    (layout.slot(slot) / spelled).mkdir(mode=0o755, parents=True, exist_ok=True)
    file = layout.health_headers(slot)
    file.touch(mode=0o600)
    lines = (f'proxy_set_header {name} "{value}";\n' for name, value in headers.items())
    file.write_text("".join(lines), encoding="utf-8")
    replace_link(layout.health(slot), str(spelled))


def is_published(layout: Layout, slot: str) -> bool:
    """Return whether a slot has its health check for nginx, unlike those of earlier versions of the collection."""
    return layout.health(slot).is_symlink()


def problem(layout: Layout, *, patient: bool = False) -> str:
    """Return why clients do not reach the live release of an app through its front door; empty if they do.

    It is also empty if no active reverse proxy of this host has a site of the app, as before the first deploy, or if the release
    is damaged.

    :arg patient: whether to wait some seconds until a reverse proxy has noticed the release.
    """
    release = layout.live_release()
    found = next(_front_doors(layout), None)
    if release is None or found is None or not layout.is_built(release):
        return ""
    proxy, door = found
    manifest = read_manifest(layout, release)
    check = _nginx_problem if proxy == "nginx" else _haproxy_problem
    return poll(
        lambda: check(layout, manifest, door),
        lambda reason: not reason,
        timeout=TIMEOUT[proxy] if patient else 0,
        interval=INTERVAL,
    )


def problems(apps: Sequence[str]) -> dict[str, str]:
    """Return the problems of the front doors of apps, by app; see :func:`problem`.

    Releases that are not verified yet are omitted: a switch decides on them.
    """
    found = {app: problem(layout) for app in apps if not _is_unverified(layout := Layout(app))}
    return {f"{VARIABLE}.{app}": reason for app, reason in found.items() if reason}


def _is_unverified(layout: Layout) -> bool:
    live = layout.live_slot()
    return live is not None and layout.verification_marker(live).exists()


def _front_doors(layout: Layout) -> Iterator[tuple[str, FrontDoor]]:
    """Yield the front doors of an app with their active reverse proxies; files of an inactive one are outdated."""
    for proxy, name in FILES.items():
        file = layout.base / name.format(app=layout.app)
        if file.exists() and systemd.query(proxy).active:
            yield proxy, FrontDoor.from_json(file.read_text(encoding="utf-8"))


def _nginx_problem(layout: Layout, manifest: ReleaseManifest, door: FrontDoor) -> str:
    """Ask nginx, whose health location passes the health check on to a process and reports the release."""
    log = layout.base / ERROR_LOG
    size = log.stat().st_size if log.exists() else 0
    url = f"{HEALTH_URL}/{layout.app}"
    try:
        answer = door.ask(url, {}, ANSWER_SECONDS)
    except OSError as error:
        return f"nginx does not answer at {door.url}: {error}{_reason(log, size, url)}"
    headers = {name.lower(): value for name, value in answer.headers.items()}
    release = headers.get(RELEASE_HEADER.lower())
    if release is None:
        others = [server.place for server in existing_nginx().servers if door.domain in server.names]
        cause = f"its name is also in {' and in '.join(others)}" if others else "a line of the site, such as extra, answers first"
        return f"{door.url} does not reach the app: nginx answered {url} with {answer.status_line}; {cause}"
    if release != manifest.id or answer.release not in (None, manifest.id):
        return f"{door.url} is served by release {answer.release or release or 'none'}"
    if headers.get(HEALTH_HEADER.lower()) != HEALTHY:
        shown = answer.status_line if answer.status in GATEWAY_ERRORS else answer
        return f"{door.url}: GET {manifest.health.path} through nginx answered {shown}{_reason(log, size, url)}"
    return ""


def _haproxy_problem(_layout: Layout, manifest: ReleaseManifest, door: FrontDoor) -> str:
    """Ask HAProxy, which passes every request on to a process."""
    path = manifest.health.path
    try:
        answer = door.ask(path, manifest.health.headers, ANSWER_SECONDS)
    except OSError as error:
        return f"HAProxy does not answer at {door.url}: {error}"
    if answer.status in GATEWAY_ERRORS or not manifest.health.accepts(answer.status):
        return f"{door.url}: GET {path} through HAProxy answered {answer}"
    if answer.release not in (None, manifest.id):
        return f"{door.url} is served by release {answer.release}"
    return ""


def _reason(log: Path, start: int, url: str) -> str:
    """Return the error that nginx logged for the last request of ``url`` since the log had ``start`` bytes."""
    if not log.exists():
        return ""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        text = file.read(1 << 20)
    return f": {found}" if (found := last_error(text, url)) else ""


def last_error(text: str, url: str) -> str:
    """Return the error of the last request of ``url`` in lines of nginx's error log, which quote what clients send."""
    lines = (line.partition(", client: ") for line in text.splitlines() if f', request: "GET {url} ' in line)
    errors = [before.partition("*")[2].partition(" ")[2] for before, found, _after in lines if found]
    return errors[-1] if errors else ""
