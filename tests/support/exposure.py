"""How exposed the units of the collection are at most, as systemd-analyze says: 10 is a unit that may do everything."""

from __future__ import annotations

from testinfra.host import Host

#: What was measured on Debian 12 and 13, and 0.2 more. apt-daily-upgrade is not here: it has to be able to change the whole host.
MOST = {
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
    """Return those of the units that are more exposed on this host than `MOST` says, and by how much."""
    found = {}
    for name in names:
        line = host.check_output("systemd-analyze security --no-pager %s | tail -n 1", f"{name}.service")
        found[name] = float(line.split(": ")[1].split()[0])
    return {name: exposure for name, exposure in found.items() if exposure > MOST[name]}
