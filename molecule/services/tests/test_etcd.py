"""etcd: alone on its host, and as a cluster of three that grows, is cut, loses a member's data, and goes back to a snapshot."""

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

from tests.support.intruder import Intruder
from tests.support.pki import Authority
from tests.support.remote import address, eventually, expect_success, hosts, run_playbook

testinfra_hosts = ["ansible://lock"]

#: The cluster of three. The first two are of other releases of Debian, as while a fleet is upgraded.
MEMBERS = ("debian12", "debian13", "db")

ROOT_PASSWORD = "ro\"ot '$x`y\\z %h"
PASSWORD = "p@ss: word"

SINGLE = "http://127.0.0.1:2379"
SHARED = "https://127.0.0.1:2379"


def etcdctl(host: Host, *words: str, url: str = SHARED, user: str = "shop", password: str = PASSWORD) -> Any:
    """Run etcdctl on a host; with ``user`` empty, as nobody."""
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": url}
    environment |= {"ETCDCTL_CACERT": "/etc/etcd/ca.pem"} if url.startswith("https") else {}
    environment |= {"ETCDCTL_USER": user, "ETCDCTL_PASSWORD": password} if user else {}
    return host.run(shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), "etcdctl", *words]))


def says(host: Host, *words: str, **options: str) -> str:
    """Return what etcdctl prints, which has to succeed."""
    finished = etcdctl(host, *words, **options)
    assert finished.rc == 0, finished.stderr
    return str(finished.stdout.strip())


def names_of_members(host: Host) -> dict[str, bool]:
    """Return the members that have a name, and whether they are without a vote."""
    lines = says(host, "member", "list", user="root", password=ROOT_PASSWORD).splitlines()
    rows = [line.split(", ") for line in lines]
    return {row[2]: row[5] == "true" for row in rows if row[2]}


class Cluster:
    """The role, applied to the hosts of the cluster as a user's playbook does."""

    #: What was said in check mode, when there was nothing yet.
    checked = ""

    def __init__(self, directory: Path) -> None:
        """Write the certificates of the members."""
        self.directory = directory
        self.intruder = Intruder(*(f"https://{address(host)}:2379" for host in hosts(*MEMBERS).values()))
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
        """Run the role on hosts, one after the other."""
        return self.run(names, {"roles": ["funnel.tornado.etcd"], "serial": 1, "check_mode": check}, changes)

    def tasks(self, part: str, **changes: Any) -> tuple[int, str]:
        """Run other tasks of the role on all hosts."""
        role = {"name": "funnel.tornado.etcd", "tasks_from": part}
        return self.run(MEMBERS, {"tasks": [{"name": "Run them", "ansible.builtin.import_role": role}]}, changes)

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
    says(hosts(*MEMBERS)[MEMBERS[0]], "put", "/shop/first", "kept")
    # While they join, somebody waits for one that lets everybody in.
    with cluster.intruder.at_work():
        expect_success(cluster.provision(*MEMBERS))
        eventually(lambda: all(cluster.intruder.refused.values()))
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


def test_one_alone_keeps_its_data_over_a_reboot(host: Host) -> None:
    says(host, "put", "/kept", "over a reboot", url=SINGLE, user="")
    booted = host.check_output("cat /proc/sys/kernel/random/boot_id")
    host.run("systemctl reboot")
    eventually(lambda: host.check_output("cat /proc/sys/kernel/random/boot_id") != booted)
    eventually(lambda: says(host, "get", "--print-value-only", "/kept", url=SINGLE, user="") == "over a reboot")
    says(host, "del", "/kept", url=SINGLE, user="")


def test_it_is_reached_at_the_named_addresses_only(host: Host) -> None:
    sockets = host.check_output("grep -hE ' 0A ' /proc/net/tcp /proc/net/tcp6").splitlines()
    ports = {f"{port:04X}" for port in (2379, 2380)}
    listening = {row.split()[1].split(":")[0] for row in sockets if row.split()[1].split(":")[1] in ports}
    own = "".join(f"{int(number):02X}" for number in reversed(address(host).split(".")))
    assert listening == {own, "0100007F"}


def test_a_port_that_is_taken_leaves_etcd_as_it_was(host: Host, tmp_path: Path) -> None:
    before = host.check_output("cat /etc/default/etcd")
    # Of all addresses of the loopback this is the one that is asked for; somebody else has its port.
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
    says(host, "endpoint", "health", url=SINGLE, user="")


def test_check_mode_says_what_would_be_of_hosts_that_have_nothing(cluster: Cluster) -> None:
    assert cluster.checked.count("failed=0") == 3
    assert "changed=0 " not in cluster.checked
    for name in MEMBERS[1:]:
        assert f"etcd_members: {name} will join once another member answers" in " ".join(cluster.checked.split())


def test_three_have_grown_from_one(members: dict[str, Host]) -> None:
    for host in members.values():
        assert names_of_members(host) == dict.fromkeys(MEMBERS, False)
        assert says(host, "get", "--print-value-only", "/shop/first") == "kept"
        assert host.run("ls /var/lib/etcd/funnel/member").rc == 0


def test_a_member_that_joins_lets_nobody_in_who_has_no_password(cluster: Cluster, members: dict[str, Host]) -> None:
    assert cluster.intruder.got_in == []
    assert all(cluster.intruder.refused.values())
    for host in members.values():
        assert says(host, "user", "list", user="root", password=ROOT_PASSWORD).split() == ["root", "shop"]


def test_several_members_with_passwords_need_certificates(cluster: Cluster, members: dict[str, Host]) -> None:
    """Without them, whoever reaches the port for members may write anything."""
    host = members["debian13"]
    host.check_output("systemctl stop etcd && mv /var/lib/etcd/funnel /var/lib/etcd/aside")
    try:
        status, output = cluster.provision("debian13", etcd_tls={})
    finally:
        host.check_output("mv /var/lib/etcd/aside /var/lib/etcd/funnel && systemctl start etcd")
    assert status != 0
    assert "etcd_tls: is missing; several members with passwords require it" in " ".join(output.split())


def test_users_have_their_prefixes_and_nobody_else_gets_in(members: dict[str, Host]) -> None:
    host = members["db"]
    says(host, "put", "/shop/a", "1")
    for words, login, reason in (
        (["put", "/other/a", "1"], {}, "permission denied"),
        (["get", "/shop/a"], {"user": ""}, "user name is empty"),
        (["get", "/shop/a"], {"password": "wrong"}, "invalid user ID or password"),
        (["user", "list"], {}, "permission denied"),
    ):
        refused = etcdctl(host, *words, **login)
        assert refused.rc != 0
        assert reason in refused.stderr


def test_members_are_let_in_by_their_certificates(members: dict[str, Host], host: Host) -> None:
    assert members
    code = "import socket, ssl\ncontext = ssl._create_unverified_context()\n"
    code += "s = context.wrap_socket(socket.create_connection(('db', 2380), 5))\n"
    code += "s.sendall(b'GET /members HTTP/1.0\\r\\n\\r\\n')\nprint(s.recv(100))"
    refused = host.run("python3 -c %s", code)
    assert refused.rc != 0
    assert "alert" in refused.stderr


def test_passwords_are_changed_while_it_serves(cluster: Cluster, members: dict[str, Host]) -> None:
    changed = [{"name": "shop", "password": "hunter2", "prefixes": ["/shop/", "/more/"]}]
    assert "hunter2" not in expect_success(cluster.provision("debian12", etcd_users=changed))
    says(members["db"], "put", "/more/a", "1", password="hunter2")
    assert etcdctl(members["db"], "get", "/shop/first").rc != 0
    expect_success(cluster.provision("debian12"))
    assert etcdctl(members["db"], "get", "/more/a").rc != 0
    assert says(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_secrets_are_root_s_and_in_no_argument(members: dict[str, Host]) -> None:
    for host in members.values():
        assert host.check_output("stat --format '%a %U %G' /etc/etcd/backup.env /etc/etcd/tls.key").splitlines() == [
            "600 root root",
            "640 root etcd",
        ]
        assert (
            host.run("grep -l %s /proc/[0-9]*/cmdline /var/log/*.log /etc/default/etcd*", f"[{PASSWORD[0]}]{PASSWORD[1:]}").stdout
            == ""
        )


def test_a_wrong_password_of_root_is_said(cluster: Cluster, members: dict[str, Host]) -> None:
    status, output = cluster.provision("db", etcd_root_password="wr0ng-word")
    assert status != 0
    assert "etcd_root_password: is not the password of root" in output
    assert "wr0ng-word" not in output
    assert says(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_tls_is_not_given_up_while_it_serves(cluster: Cluster, members: dict[str, Host]) -> None:
    status, output = cluster.provision("debian13", etcd_tls={})
    assert status != 0
    assert "etcd_members.debian13: is registered in the cluster as https://debian13:2380, not http://debian13:2380" in " ".join(
        output.split()
    )
    assert says(members["debian13"], "get", "--print-value-only", "/shop/first") == "kept"


def test_users_without_a_password_of_root_are_refused(cluster: Cluster) -> None:
    status, output = cluster.provision("db", etcd_root_password="")
    assert status != 0
    assert "etcd_users: requires etcd_root_password" in output


def test_a_member_that_is_down_keeps_nobody_from_writing_and_catches_up(members: dict[str, Host]) -> None:
    members["debian13"].check_output("systemctl stop etcd")
    says(members["db"], "put", "/shop/while", "down")
    members["debian13"].check_output("systemctl start etcd")
    eventually(lambda: says(members["debian13"], "get", "--print-value-only", "/shop/while") == "down")


def test_a_member_that_has_lost_its_data_is_replaced(cluster: Cluster, members: dict[str, Host]) -> None:
    members["db"].check_output("systemctl stop etcd && rm -rf /var/lib/etcd/funnel")
    expect_success(cluster.provision("db"))
    assert names_of_members(members["debian12"]) == dict.fromkeys(MEMBERS, False)
    assert says(members["db"], "get", "--print-value-only", "/shop/first") == "kept"


def test_no_second_cluster_is_founded_while_the_first_has_stopped(cluster: Cluster, members: dict[str, Host]) -> None:
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
    eventually(lambda: says(members["debian12"], "get", "--print-value-only", "/shop/first") == "kept")


def test_a_snapshot_is_taken_by_the_clock_and_by_hand_and_all_go_back_to_it(
    cluster: Cluster, members: dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in members.values():
        assert host.check_output("systemctl is-active etcd-backup.timer") == "active"
        host.check_output("systemctl start etcd-backup.service")
        assert host.check_output("stat --format '%a %U' /var/backups/etcd /var/backups/etcd/*.db").splitlines() == [
            "700 root",
            "600 root",
        ]
    says(members["db"], "put", "/shop/a", "before")
    monkeypatch.setenv("PWD", str(tmp_path))
    expect_success(cluster.tasks("backup", etcd_backup_fetch="backups"))
    (snapshot,) = (tmp_path / "backups").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (snapshot.parent, snapshot)] == [0o700, 0o600]
    says(members["db"], "put", "/shop/a", "after")
    for name in MEMBERS[1:]:  # the majority has lost its data
        members[name].check_output("systemctl stop etcd && rm -rf /var/lib/etcd/funnel")
    expect_success(cluster.tasks("restore", etcd_restore_from=f"backups/{snapshot.name}"))
    for host in members.values():
        eventually(partial(reads, host, "/shop/a", "before"))
        assert host.run("ls /var/lib/etcd/funnel.snapshot").rc != 0
    assert names_of_members(members["debian12"]) == dict.fromkeys(MEMBERS, False)
    output = expect_success(cluster.provision(*MEMBERS))
    assert output.count("changed=0 ") == 3, output[-1000:]


def reads(host: Host, key: str, value: str) -> bool:
    return says(host, "get", "--print-value-only", key) == value


def test_a_snapshot_that_is_none_leaves_what_there_is(cluster: Cluster, members: dict[str, Host], tmp_path: Path) -> None:
    (tmp_path / "none.db").write_bytes(b"no snapshot" * 1000)
    status, _ = cluster.tasks("restore", etcd_restore_from=str(tmp_path / "none.db"))
    assert status != 0
    assert says(members["db"], "get", "--print-value-only", "/shop/a") == "before"


def test_old_snapshots_are_removed(members: dict[str, Host]) -> None:
    host = members["db"]
    host.check_output("cd /var/backups/etcd && for n in 1 2 3 4 5 6 7 8 9; do touch 2020010${n}T000000Z.db; done")
    newest = host.check_output("/usr/local/sbin/etcd-backup")
    kept = host.check_output("ls /var/backups/etcd/*.db").splitlines()
    assert len(kept) == 7
    assert kept[-1] == newest
