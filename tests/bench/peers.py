"""The peers that the collection is compared to, and further apps that are served like theirs."""

from __future__ import annotations

import shlex

from tests.bench import secure
from tests.bench.hosts import HERE, PLAIN, Fleet
from tests.bench.serving import ASGI_NAME
from tests.bench.table import Table


def install(fleet: Fleet, host: str) -> None:
    """Add an ASGI app and a site with TLS to a host of the collection, and the peers of both to the host of the manual setup."""
    source = {"source": {"path": str(fleet.code)}}
    asgi = source | {"run": {"asgi": "asgi_app:app"}, "domains": [ASGI_NAME]}
    site = {"domains": [secure.NAME], "tls": {"provider": "self_signed"}, "static": {"url": "/static/", "path": "static"}}
    fleet.more = {"asgi": asgi, "secure": source | site | {"run": {"app": "bench_app:make_app"}, "health": {"path": "/healthz"}}}
    fleet.change_variable()
    fleet.playbook("site.yml", host)
    certificate, key = secure.certificate(fleet, host)
    variables = f"CERTIFICATE={shlex.quote(certificate)}\nKEY={shlex.quote(key)}\n"
    fleet.ssh(PLAIN, variables + (HERE / "peers.sh").read_text())


def remove(fleet: Fleet, host: str) -> list[Table]:
    """Remove the further apps from the host of the collection; return no table."""
    names = ",".join(fleet.more)
    fleet.more = {}
    fleet.change_variable()
    fleet.playbook("playbooks/remove.yml", host, "-e", f"app={names}")
    fleet.playbook("site.yml", host)
    return []
