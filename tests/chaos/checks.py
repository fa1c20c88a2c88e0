"""What must hold after each step."""

from __future__ import annotations

import http.client
import json
import shlex
import time
from collections.abc import Callable, Iterable, Sequence

from tests.chaos.clients import CLOSED, Clients, compare
from tests.chaos.host import Entrance, Host
from tests.support.remote import FIND_LEFTOVERS, Site

#: Seconds after a fault by which the site must answer again.
RECOVERY = 60.0

#: Seconds after the end of a fault in which requests that it affected may still fail.
GRACE = 3.0

#: Prints what the removal of an app left on the host.
REMAINS = """
import json, pathlib, re, subprocess, sys
app = sys.argv[1]
left = [path for path in (pathlib.Path("/srv", app), pathlib.Path("/var/log", app)) if path.exists()]
for directory in ("/etc/supervisor/conf.d", "/etc/nginx", "/etc/funnel", "/etc/logrotate.d"):
    left += [path for path in pathlib.Path(directory).rglob("*") if re.match(rf"{app}([-.].*)?$", path.name)]
status = subprocess.run(["supervisorctl", "status"], stdout=subprocess.PIPE, text=True).stdout
left += [line for line in status.splitlines() if line.startswith(f"{app}-")]
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if f"TORNADO_APP={app}".encode() in (path / "environ").read_bytes().split(b"\\0"):
            left.append(f"process {path.name}")
    except OSError:
        continue
print(json.dumps(sorted(map(str, left))))
"""

#: Prints temporary files, failed units, and the number of releases of an app.
REST = """
import json, pathlib, re, subprocess, sys
directories = ("/tmp", "/var/tmp", "/root/.ansible/tmp")
left = [str(path) for directory in directories for path in pathlib.Path(directory).glob("*")]
left = [path for path in left if not re.search(r"/systemd-private-|/namespace-dev-|-unix$", path)]
failed = ["systemctl", "list-units", "--failed", "--plain", "--no-legend"]
left += subprocess.run(failed, stdout=subprocess.PIPE, text=True).stdout.splitlines()
for app in sys.argv[1:]:
    releases = list(pathlib.Path("/srv", app, "releases").iterdir())
    left += [f"{len(releases)} releases of {app}"] * (len(releases) > 5)
print(json.dumps(left))
"""

NOTES = "/srv/{}/shared/notes"


class ViolationError(Exception):
    """Something that must hold does not."""


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds, and return whether it does. Errors of connections count as false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return True
        except (OSError, http.client.HTTPException, ValueError):
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)


def answers(addresses: Iterable[str], domain: str) -> bool:
    """Return whether a site answers at each address."""
    return all(Site(address, domain).get("/whoami").status == 200 for address in addresses)


def classify(clients: Clients, windows: Sequence[tuple[float, float]], *, reloads: bool) -> dict[str, list[str]]:
    """Return the reasons of new failures by class: in a ``fault``, ``closed`` by a reload of nginx, or a ``violation``."""
    found: dict[str, list[str]] = {"fault": [], "closed": [], "violation": []}
    for began, seconds, reason in clients.new_failures():
        if any(began < end + GRACE and began + seconds > begin for begin, end in windows):
            kind = "fault"
        elif CLOSED in reason and reloads:
            kind = "closed"
        else:
            kind = "violation"
        found[kind].append(f"{time.strftime('%H:%M:%S', time.localtime(began))} {reason} after {seconds:.2f} s")
    return found


def serving(address: str, app: str, domains: Sequence[str], mark: str) -> list[str]:
    """Return how what the app's domains serve at an address differs from a release."""
    found = {json.loads(Site(address, domain).get("/whoami").body)["mark"] for domain in domains for _ in range(6)}
    return [f"{address}: {app} serves {', '.join(sorted(found))} instead of {mark}"] if found != {mark} else []


def site_options(address: str, app: str, domain: str, answer: str) -> list[str]:
    """Return how the answer of nginx itself differs from that of the site of the live release."""
    found = Site(address, domain).get("/site").body.decode()
    return [f"{address}: the site of {app} is that of {found!r} instead of {answer!r}"] if found != answer else []


def stored(entrance: Entrance, app: str, clients: Clients) -> list[str]:
    """Return which acknowledged POSTs are lost, and which are stored more than once."""
    acknowledged = list(clients.result.notes)
    notes = NOTES.format(app)
    read = f"test ! -e {notes} || cat {notes}"  # a missing file loses all POSTs, and is reported as that
    recorded = "".join(host.run("sh", "-c", read) for host in entrance.hosts)
    return [f"{entrance.name}: {problem}" for problem in compare(acknowledged, recorded)]


def leftovers(host: Host, deployed: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Return what is left on the host that belongs to no release that is live or kept."""
    scripts = [(FIND_LEFTOVERS, [app]) for app in deployed] + [(REMAINS, [app]) for app in removed] + [(REST, list(deployed))]
    commands = [shlex.join(["python3", "-c", code, *arguments]) for code, arguments in scripts]
    lines = host.run("sh", "-ec", "\n".join(commands)).splitlines()  # one connection, as a login takes longer than the scripts
    return [f"{host.name}: left behind: {path}" for line in lines for path in json.loads(line)]
