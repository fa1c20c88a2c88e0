"""Limits for the exposure of the collection's units as measured by systemd-analyze; 10 means no hardening."""

from __future__ import annotations

from testinfra.host import Host

#: Measured on Debian 12 and 13, plus 0.2. apt-daily-upgrade is missing, as it must be able to change the whole host.
MAX_EXPOSURE = {
    "etcd": 1.6,
    "etcd-backup": 2.0,
    "fleet-logrotate": 2.0,
    "funnel-firewall": 1.9,
    "haproxy": 3.4,
    "keepalived": 3.7,
    "mongod": 1.6,
    "mongodb-backup": 2.0,
    "nginx": 3.3,
    "prometheus-nginx-exporter": 1.6,
    "prometheus-node-exporter": 3.5,
    "prometheus-tornado-exporter": 1.5,
    "rsyslog": 3.5,
    "supervisor": 3.3,
}


def overexposed_units(host: Host, *names: str) -> dict[str, float]:
    """Return the units whose exposure on this host exceeds `MAX_EXPOSURE`, with their exposure."""
    found = {}
    for name in names:
        line = host.check_output("systemd-analyze security --no-pager %s | tail -n 1", f"{name}.service")
        found[name] = float(line.split(": ")[1].split()[0])
    return {name: exposure for name, exposure in found.items() if exposure > MAX_EXPOSURE[name]}
