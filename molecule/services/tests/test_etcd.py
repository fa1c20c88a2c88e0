"""etcd: a single member, and a cluster of three that grows, loses members and data, and is restored from a snapshot."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.support.access_probe import AccessProbe
from tests.support.pki import Authority
from tests.support.remote import address, eventually, expect_success, hosts, run_playbook

testinfra_hosts = ["ansible://lock"]

#: The members of the cluster. The first two run different releases of Debian, as during an upgrade of a fleet.
MEMBERS = ("debian12", "debian13", "db")

ROOT_PASSWORD = "ro\"ot '$x`y\\z %h"
PASSWORD = "p@ss: word"

SINGLE = "http://127.0.0.1:2379"
SHARED = "https://127.0.0.1:2379"


def etcdctl(host: Host, *words: str, url: str = SHARED, user: str = "shop", password: str = PASSWORD) -> Any:
    """Run etcdctl on a host; an empty ``user`` sends no credentials."""
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": url}
    environment |= {"ETCDCTL_CACERT": "/etc/etcd/ca.pem"} if url.startswith("https") else {}
    environment |= {"ETCDCTL_USER": user, "ETCDCTL_PASSWORD": password} if user else {}
    return host.run(shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), "etcdctl", *words]))


def run_etcdctl(host: Host, *words: str, **options: str) -> str:
    """Run etcdctl, expect success, and return its output."""
    result = etcdctl(host, *words, **options)
    assert result.rc == 0, result.stderr
    return str(result.stdout.strip())


def list_members(host: Host) -> dict[str, bool]:
    """Return the named members, and whether each is a learner without a vote."""
    lines = run_etcdctl(host, "member", "list", user="root", password=ROOT_PASSWORD).splitlines()
    rows = [line.split(", ") for line in lines]
    return {row[2]: row[5] == "true" for row in rows if row[2]}


class Cluster:
    """Applies the role to the hosts of the cluster, like a user's playbook."""

    #: The output of check mode on bare hosts.
    checked = ""

    def __init__(self, directory: Path) -> None:
        """Create the certificates of the members."""
        self.directory = directory
        self.probe = AccessProbe(*(f"https://{address(host)}:2379" for host in hosts(*MEMBERS).values()))
        authority = Authority("etcd", datetime.now(UTC))
        (directory / "ca.pem").write_text(authority.pem)
        for name in MEMBERS:
            (directory / name).mkdir()
            authority.leaf(name, "127.0.0.1", address(hosts(name)[name])).write(directory / name)
        self.variables: dict[str, Any] = {
            "etcd_listen": ["{{ ansible_host }}"],
            "etcd_root_password": ROOT_PASSWORD,
            "etcd_users": [{"name": "shop", "password": PASSWORD, "prefixes": ["/shop/"]}],
            "etcd_tls": {
                "certificate": f"{directory}/{{{{ inventory_hostname }}}}/chain.pem",
                "key": f"{directory}/{{{{ inventory_hostname }}}}/key.pem",
                "ca": f"{directory}/ca.pem",
            },
        }

    def provision(self, *names: str, check: bool = False, **changes: Any) -> tuple[int, str]:
        """Apply the role to hosts, one at a time."""
        return self.run(names, {"roles": ["funnel.tornado.etcd"], "serial": 1, "check_mode": check}, changes)

    def tasks(self, part: str, **changes: Any) -> tuple[int, str]:
        """Run a task file of the role on all hosts."""
        role = {"name": "funnel.tornado.etcd", "tasks_from": part}
        return self.run(MEMBERS, {"tasks": [{"name": "Run the tasks", "ansible.builtin.import_role": role}]}, changes)

    def run(self, names: tuple[str, ...], play: dict[str, Any], changes: dict[str, Any]) -> tuple[int, str]:
        file = self.directory / "play.yml"
        head = {"name": "Provision etcd", "hosts": list(names), "gather_facts": False, "any_errors_fatal": True}
        variables = self.variables | {"etcd_hosts": list(MEMBERS)} | changes
        file.write_text(yaml.safe_dump([head | {"vars": variables} | play]))
        return run_playbook(str(file), ",".join(names))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("etcd"))
    cluster.checked = expect_success(cluster.provision(*MEMBERS, check=True))
    expect_success(cluster.provision(MEMBERS[0], etcd_hosts=[MEMBERS[0]]))
    run_etcdctl(hosts(*MEMBERS)[MEMBERS[0]], "put", "/shop/first", "kept")
    # While members join, a client without credentials tries to access them.
    with cluster.probe.running():
        expect_success(cluster.provision(*MEMBERS))
        eventually(lambda: all(cluster.probe.denied.values()))
    yield cluster
    for host in hosts(*MEMBERS).values():
        host.run("systemctl disable --now etcd etcd-backup.timer")
        host.run("apt-get purge --yes etcd-server etcd-client")
        host.run(
            "rm -rf /var/lib/etcd /etc/etcd /etc/default/etcd* /var/backups/etcd /etc/systemd/system/etcd*"
            " /usr/local/sbin/etcd-*; systemctl daemon-reload"
        )


@pytest.fixture
def members(cluster: Cluster) -> dict[str, Host]:
    assert cluster
    return hosts(*MEMBERS)


def test_single_member_keeps_its_data_after_reboot(host: Host) -> None:
    run_etcdctl(host, "put", "/kept", "over a reboot", url=SINGLE, user="")
    booted = host.check_output("cat /proc/sys/kernel/random/boot_id")
    host.run("systemctl reboot")
    eventually(lambda: host.check_output("cat /proc/sys/kernel/random/boot_id") != booted)
    eventually(lambda: run_etcdctl(host, "get", "--print-value-only", "/kept", url=SINGLE, user="") == "over a reboot")
    run_etcdctl(host, "del", "/kept", url=SINGLE, user="")


def test_etcd_listens_only_on_configured_addresses(host: Host) -> None:
    sockets = host.check_output("grep -hE ' 0A ' /proc/net/tcp /proc/net/tcp6").splitlines()
    ports = {f"{port:04X}" for port in (2379, 2380)}
    listening = {row.split()[1].split(":")[0] for row in sockets if row.split()[1].split(":")[1] in ports}
    own = "".join(f"{int(number):02X}" for number in reversed(address(host).split(".")))
    assert listening == {own, "0100007F"}


def test_port_in_use_restores_previous_etcd(host: Host, tmp_path: Path) -> None:
    before = host.check_output("cat /etc/default/etcd")
    # Another process occupies the port on the configured loopback address.
    holder = "import socket, time; s = socket.socket(); s.bind(('127.0.0.2', 2379)); s.listen(); time.sleep(60)"
    host.check_output("systemd-run --unit=holder python3 -c %s", holder)
    playbook = tmp_path / "play.yml"
    play = {"name": "x", "hosts": "lock", "gather_facts": False, "roles": ["funnel.tornado.etcd"]}
    playbook.write_text(yaml.safe_dump([play | {"vars": {"etcd_listen": ["127.0.0.2"]}}]))
    try:
        status, output = run_playbook(str(playbook), "lock")
    finally:
        host.check_output("systemctl stop holder")
    assert status != 0
    assert "127.0.0.2:2379: bind: address already in use" in output
    assert "The previous files were restored, and etcd runs with them." in output
    assert host.check_output("cat /etc/default/etcd") == before
    run_etcdctl(host, "endpoint", "health", url=SINGLE, user="")


def test_check_mode_reports_members_of_bare_hosts(cluster: Cluster) -> None:
    assert cluster.checked.count("failed=0") == 3
    assert "changed=0 " not in cluster.checked
    for name in MEMBERS[1:]:
        assert f"etcd_members: {name} will join once another member answers" in " ".join(cluster.checked.split())


def test_cluster_grows_from_one_member_to_three(members: dict[str, Host]) -> None:
    for host in members.values():
        assert list_members(host) == dict.fromkeys(MEMBERS, False)
        assert run_etcdctl(host, "get", "--print-value-only", "/shop/first") == "kept"
        assert host.run("ls /var/lib/etcd/funnel/member").rc == 0


def test_joining_member_accepts_no_client_without_password(cluster: Cluster, members: dict[str, Host]) -> None:
    assert cluster.probe.succeeded == []
    assert all(cluster.probe.denied.values())
    for host in members.values():
        assert run_etcdctl(host, "user", "list", user="root", password=ROOT_PASSWORD).split() == ["root", "shop"]


def test_cluster_with_passwords_requires_certificates(cluster: Cluster, members: dict[str, Host]) -> None:
    """Without certificates, any client of the peer port could write anything."""
    host = members["debian13"]
    host.check_output("systemctl stop etcd && mv /var/lib/etcd/funnel /var/lib/etcd/aside")
    try:
        status, output = cluster.provision("debian13", etcd_tls={})
    finally:
        host.check_output("mv /var/lib/etcd/aside /var/lib/etcd/funnel && systemctl start etcd")
    assert status != 0
    assert "etcd_tls: is missing; several members with passwords require it" in " ".join(output.split())


def test_users_access_only_their_prefixes(members: dict[str, Host]) -> None:
    host = members["db"]
    run_etcdctl(host, "put", "/shop/a", "1")
    for words, login, reason in (
        (["put", "/other/a", "1"], {}, "permission denied"),
        (["get", "/shop/a"], {"user": ""}, "user name is empty"),
        (["get", "/shop/a"], {"password": "wrong"}, "invalid user ID or password"),
        (["user", "list"], {}, "permission denied"),
    ):
        result = etcdctl(host, *words, **login)
        assert result.rc != 0
        assert reason in result.stderr


def test_peer_port_requires_a_client_certificate(members: dict[str, Host], host: Host) -> None:
    assert members
    code = "import socket, ssl\ncontext = ssl._create_unverified_context()\n"
    code += "s = context.wrap_socket(socket.create_connection(('db', 2380), 5))\n"
    code += "s.sendall(b'GET /members HTTP/1.0\\r\\n\\r\\n')\nprint(s.recv(100))"
    result = host.run("python3 -c %s", code)
    assert result.rc != 0
    assert "alert" in result.stderr


def test_passwords_are_changed_without_restart(cluster: Cluster, members: dict[str, Host]) -> None:
    changed = [{"name": "shop", "password": "hunter2", "prefixes": ["/shop/", "/more/"]}]
    assert "hunter2" not in expect_success(cluster.provision("debian12", etcd_users=changed))
    run_etcdctl(members["db"], "put", "/more/a", "1", password="hunter2")
    assert etcdctl(members["db"], "get", "/shop/first").rc != 0
    expect_success(cluster.provision("debian12"))
    assert etcdctl(members["db"], "get", "/more/a").rc != 0
    assert run_etcdctl(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_secrets_are_owned_by_root_and_not_in_arguments(members: dict[str, Host]) -> None:
    for host in members.values():
        assert host.check_output("stat --format '%a %U %G' /etc/etcd/backup.env /etc/etcd/tls.key").splitlines() == [
            "600 root root",
            "640 root etcd",
        ]
        assert (
            host.run("grep -l %s /proc/[0-9]*/cmdline /var/log/*.log /etc/default/etcd*", f"[{PASSWORD[0]}]{PASSWORD[1:]}").stdout
            == ""
        )


def test_wrong_root_password_is_reported(cluster: Cluster, members: dict[str, Host]) -> None:
    status, output = cluster.provision("db", etcd_root_password="wr0ng-word")
    assert status != 0
    assert "etcd_root_password: is not the password of root" in output
    assert "wr0ng-word" not in output
    assert run_etcdctl(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_tls_of_running_cluster_cannot_be_disabled(cluster: Cluster, members: dict[str, Host]) -> None:
    status, output = cluster.provision("debian13", etcd_tls={})
    assert status != 0
    assert "etcd_members.debian13: is registered in the cluster as https://debian13:2380, not http://debian13:2380" in " ".join(
        output.split()
    )
    assert run_etcdctl(members["debian13"], "get", "--print-value-only", "/shop/first") == "kept"


def test_users_without_root_password_are_rejected(cluster: Cluster) -> None:
    status, output = cluster.provision("db", etcd_root_password="")
    assert status != 0
    assert "etcd_users: requires etcd_root_password" in output


def test_writes_succeed_while_a_member_is_down_and_it_catches_up(members: dict[str, Host]) -> None:
    members["debian13"].check_output("systemctl stop etcd")
    run_etcdctl(members["db"], "put", "/shop/while", "down")
    members["debian13"].check_output("systemctl start etcd")
    eventually(lambda: run_etcdctl(members["debian13"], "get", "--print-value-only", "/shop/while") == "down")


def test_member_with_lost_data_is_replaced(cluster: Cluster, members: dict[str, Host]) -> None:
    members["db"].check_output("systemctl stop etcd && rm -rf /var/lib/etcd/funnel")
    expect_success(cluster.provision("db"))
    assert list_members(members["debian12"]) == dict.fromkeys(MEMBERS, False)
    assert run_etcdctl(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_no_second_cluster_is_created_while_the_first_is_stopped(cluster: Cluster, members: dict[str, Host]) -> None:
    for host in members.values():
        host.check_output("systemctl stop etcd")
    members["debian12"].check_output("mv /var/lib/etcd/funnel /var/lib/etcd/aside")
    try:
        status, output = cluster.provision("debian12")
    finally:
        members["debian12"].check_output("rm -rf /var/lib/etcd/funnel && mv /var/lib/etcd/aside /var/lib/etcd/funnel")
        for host in members.values():
            host.check_output("systemctl start --no-block etcd")
    assert status != 0
    assert "has data of a stopped cluster" in output
    eventually(lambda: run_etcdctl(members["debian12"], "get", "--print-value-only", "/shop/first") == "kept")


def test_cluster_is_restored_from_snapshot(
    cluster: Cluster, members: dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in members.values():
        assert host.check_output("systemctl is-active etcd-backup.timer") == "active"
        host.check_output("systemctl start etcd-backup.service")
        assert host.check_output("stat --format '%a %U' /var/backups/etcd /var/backups/etcd/*.db").splitlines() == [
            "700 root",
            "600 root",
        ]
    run_etcdctl(members["db"], "put", "/shop/a", "before")
    monkeypatch.setenv("PWD", str(tmp_path))
    expect_success(cluster.tasks("backup", etcd_backup_fetch="backups"))
    (snapshot,) = (tmp_path / "backups").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (snapshot.parent, snapshot)] == [0o700, 0o600]
    run_etcdctl(members["db"], "put", "/shop/a", "after")
    for name in MEMBERS[1:]:  # the majority loses its data
        members[name].check_output("systemctl stop etcd && rm -rf /var/lib/etcd/funnel")
    expect_success(cluster.tasks("restore", etcd_restore_from=f"backups/{snapshot.name}"))
    for host in members.values():
        eventually(partial(has_value, host, "/shop/a", "before"))
        assert host.run("ls /var/lib/etcd/funnel.snapshot").rc != 0
    assert list_members(members["debian12"]) == dict.fromkeys(MEMBERS, False)
    output = expect_success(cluster.provision(*MEMBERS))
    assert output.count("changed=0 ") == 3, output[-1000:]


def has_value(host: Host, key: str, value: str) -> bool:
    return run_etcdctl(host, "get", "--print-value-only", key) == value


def test_invalid_snapshot_keeps_the_current_data(cluster: Cluster, members: dict[str, Host], tmp_path: Path) -> None:
    (tmp_path / "none.db").write_bytes(b"no snapshot" * 1000)
    status, _ = cluster.tasks("restore", etcd_restore_from=str(tmp_path / "none.db"))
    assert status != 0
    assert run_etcdctl(members["db"], "get", "--print-value-only", "/shop/a") == "before"


def test_old_snapshots_are_pruned(members: dict[str, Host]) -> None:
    host = members["db"]
    host.check_output("cd /var/backups/etcd && for n in 1 2 3 4 5 6 7 8 9; do touch 2020010${n}T000000Z.db; done")
    newest = host.check_output("/usr/local/sbin/etcd-backup")
    kept = host.check_output("ls /var/backups/etcd/*.db").splitlines()
    assert len(kept) == 7
    assert kept[-1] == newest
