"""What hosts have before the collection: variations of a host, each with a command that proves that it still works."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

from testinfra.host import Host


@dataclass(frozen=True)
class Variation:
    """Commands that prepare a host, a command that must have the output ``expected`` from then on."""

    prepare: str
    probe: str
    expected: str


#: Available in all commands: ``site NAME TEXT`` writes a site of nginx, ``ask NAME [PATH]`` requests it.
FUNCTIONS = """
site() { printf '%s\\n' "$2" > /etc/nginx/sites-available/$1; ln -s ../sites-available/$1 /etc/nginx/sites-enabled/$1; }
ask() { curl --silent --max-time 5 --header "Host: $1" "http://127.0.0.1${2:-/}"; }
"""

#: Packages that the variations configure.
PACKAGES = "curl git logrotate nftables nginx openssl sudo supervisor tinyproxy"

#: The only way to the network of the variation with a proxy.
PROXY = "http://ann:hunter2@127.0.0.1:8888"

VARIATIONS = {
    # nginx
    "pages in the directory of the welcome page": Variation(
        "echo pages > /var/www/html/index.html",
        "ask unknown.test",
        "pages",
    ),
    "a cache and limits in front of another server": Variation(
        """
        mkdir -p /srv/www/backend && echo backend > /srv/www/backend/index.html
        command='python3 -m http.server 8080 --bind 127.0.0.1 --directory /srv/www/backend'
        printf '[Service]\\nExecStart=%s\\n' "$command" > /etc/systemd/system/backend.service
        systemctl start backend
        site proxy.conf 'upstream backend { server 127.0.0.1:8080; keepalive 4; }
        limit_req_zone $binary_remote_addr zone=perip:1m rate=50r/s;
        proxy_cache_path /var/cache/nginx-old keys_zone=old:1m;
        server {
            listen 80; server_name backend.test;
            location / { limit_req zone=perip burst=20; proxy_cache old; proxy_pass http://backend; }
        }'
        """,
        "ask backend.test",
        "backend",
    ),
    "TLS with a certificate of another ACME client": Variation(
        """
        mkdir -p /etc/letsencrypt/live/secure.test /var/www/acme/.well-known/acme-challenge
        cd /etc/letsencrypt/live/secure.test
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=secure.test -keyout privkey.pem -out fullchain.pem 2> /dev/null
        echo 'ssl_session_cache shared:le:1m; ssl_protocols TLSv1.2 TLSv1.3;' > /etc/letsencrypt/options-ssl-nginx.conf
        site secure 'server {
            listen 443 ssl; server_name secure.test; include /etc/letsencrypt/options-ssl-nginx.conf;
            ssl_certificate /etc/letsencrypt/live/secure.test/fullchain.pem;
            ssl_certificate_key /etc/letsencrypt/live/secure.test/privkey.pem;
            location / { return 200 secure; }
        }
        server { listen 80; server_name secure.test; location /.well-known/acme-challenge/ { root /var/www/acme; } }'
        echo token > /var/www/acme/.well-known/acme-challenge/x
        """,
        """
        curl --silent --insecure --resolve secure.test:443:127.0.0.1 --write-out '|' https://secure.test/
        ask secure.test /.well-known/acme-challenge/x
        """,
        "secure|token",
    ),
    "an access log in a format of its own": Variation(
        """
        echo 'log_format short "$host"; access_log /var/log/nginx/short.log short;' > /etc/nginx/conf.d/log.conf
        site logged 'server { listen 80; server_name logged.test; return 200; }'
        """,
        "ask logged.test; tail -n 1 /var/log/nginx/short.log",
        "logged.test",
    ),
    "a site with passwords": Variation(
        """
        printf 'ann:%s\\n' "$(openssl passwd -apr1 secret)" > /etc/nginx/old.htpasswd
        mkdir -p /srv/www/private && echo private > /srv/www/private/index.html
        site private 'server {
            listen 80; server_name private.test; root /srv/www/private;
            auth_basic old; auth_basic_user_file old.htpasswd;
        }'
        """,
        """
        ask private.test | grep --count 401
        curl --silent --user ann:secret --header 'Host: private.test' http://127.0.0.1/
        """,
        "2\nprivate",
    ),
    "a redirect to HTTPS": Variation(
        "site moved 'server { listen 80; server_name moved.test; return 301 https://$host$request_uri; }'",
        "curl --silent --output /dev/null --write-out '%{redirect_url}' --header 'Host: moved.test' http://127.0.0.1/a",
        "https://moved.test/a",
    ),
    "a site at a port of its own": Variation(
        "site port 'server { listen 8081; return 200 port; }'",
        "curl --silent http://127.0.0.1:8081/",
        "port",
    ),
    "a site at an IPv6 address": Variation(
        "site six 'server { listen [::]:80; server_name six.test; return 200 six; }'",
        "curl --silent --globoff --header 'Host: six.test' 'http://[::1]/'",
        "six",
    ),
    "a site behind a Unix socket": Variation(
        """
        site inner 'server { listen unix:/run/inner.sock; return 200 inner; }
        server { listen 80; server_name inner.test; location / { proxy_pass http://unix:/run/inner.sock; } }'
        """,
        "ask inner.test",
        "inner",
    ),
    "maps and headers in conf.d": Variation(
        """
        echo 'map $http_upgrade $connection_upgrade { default upgrade; "" close; }
        add_header X-Old yes; real_ip_header X-Forwarded-For; server_names_hash_max_size 1024;' > /etc/nginx/conf.d/maps.conf
        site map 'server { listen 80; server_name map.test; return 200 $connection_upgrade; }'
        """,
        "curl --silent --include --header 'Host: map.test' http://127.0.0.1/ | tr -d '\\r' | sed -n '/^X-Old/p; $p'",
        "X-Old: yes\nclose",
    ),
    "sites in a directory of another tool": Variation(
        """
        mkdir /etc/nginx/vhosts
        echo 'server { listen 80; server_name vhost.test; return 200 vhost; }' > /etc/nginx/vhosts/vhost.vhost
        sed -i 's|^http {|http {\\n    include /etc/nginx/vhosts/*.vhost;|' /etc/nginx/nginx.conf
        """,
        "ask vhost.test",
        "vhost",
    ),
    "an environment of nginx": Variation(
        "sed -i '1i env OLD=kept;' /etc/nginx/nginx.conf",
        "nginx -T 2> /dev/null | grep '^env OLD'",
        "env OLD=kept;",
    ),
    "a drop-in of nginx": Variation(
        """
        mkdir -p /etc/systemd/system/nginx.service.d
        printf '[Service]\\nLimitNOFILE=9000\\nRestart=always\\n' > /etc/systemd/system/nginx.service.d/override.conf
        """,
        "systemctl show nginx --property Restart --value",
        "always",
    ),
    "another id of www-data": Variation(
        "systemctl stop nginx; usermod --uid 3333 www-data",
        "ps --no-headers -o uid --user www-data | sort --unique",
        " 3333",
    ),
    # supervisord
    "a program of another user with an environment": Variation(
        """
        useradd --create-home deploy
        printf '[program:legacy]\\ncommand=sleep infinity\\nuser=deploy\\n' > /etc/supervisor/conf.d/legacy.conf
        echo 'environment=MODE="old",PATH="/opt/x:%(ENV_PATH)s"' >> /etc/supervisor/conf.d/legacy.conf
        """,
        "ps --no-headers -o user,cmd e --user deploy | grep --only-matching 'deploy .*sleep infinity\\|MODE=old\\|PATH=/opt/x'",
        "deploy   sleep infinity\nPATH=/opt/x\nMODE=old",
    ),
    "a group of programs": Variation(
        """
        printf '[program:one]\\ncommand=sleep infinity\\n[group:workers]\\nprograms=one\\n' > /etc/supervisor/conf.d/workers.conf
        """,
        "supervisorctl status workers: | cut -c -40",
        "workers:one                      RUNNING",
    ),
    "an event listener": Variation(
        "printf '[eventlistener:mail]\\ncommand=cat\\nevents=TICK_60\\n' > /etc/supervisor/conf.d/mail.conf",
        "supervisorctl status mail | cut -c -40",
        "mail                             RUNNING",
    ),
    "an HTTP server of supervisord": Variation(
        "printf '[inet_http_server]\\nport=127.0.0.1:9001\\n' > /etc/supervisor/conf.d/http.conf",
        "curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:9001/",
        "200",
    ),
    "a group that controls supervisord": Variation(
        """
        groupadd operators && useradd --groups operators ops
        printf '[unix_http_server]\\nchown=root:operators\\nchmod=0770\\n' > /etc/supervisor/conf.d/socket.conf
        """,
        "runuser --user ops -- supervisorctl status mail | cut -c -40",
        "mail                             RUNNING",
    ),
    # The system
    "sudo rules and cron jobs": Variation(
        """
        echo 'backup ALL=(root) NOPASSWD: /usr/bin/true' > /etc/sudoers.d/backup
        mkdir -p /etc/cron.d && echo '0 3 * * * backup true' > /etc/cron.d/backup
        """,
        "runuser --user backup -- sudo --non-interactive /usr/bin/true && cat /etc/cron.d/backup",
        "0 3 * * * backup true",
    ),
    "other directories in /srv": Variation(
        "mkdir -p /srv/repos /srv/backup && chown backup /srv/backup && chmod 700 /srv/backup",
        "stat --format '%n %a %U' /srv/backup /srv/repos",
        "/srv/backup 700 backup\n/srv/repos 755 root",
    ),
    "kernel settings and limits": Variation(
        """
        echo net.core.somaxconn=1024 > /etc/sysctl.d/99-tuning.conf
        echo '* hard nofile 8192' > /etc/security/limits.d/90-files.conf
        """,
        "cat /etc/sysctl.d/99-tuning.conf /etc/security/limits.d/90-files.conf",
        "net.core.somaxconn=1024\n* hard nofile 8192",
    ),
    "limits of all services": Variation(
        """
        mkdir -p /etc/systemd/system.conf.d
        printf '[Manager]\\nDefaultLimitNOFILE=1024:4096\\nDefaultTasksMax=500\\n' > /etc/systemd/system.conf.d/limits.conf
        systemctl daemon-reexec
        """,
        "systemctl show --property DefaultTasksMax --value",
        "500",
    ),
    "a log that is not kept": Variation(
        """
        mkdir -p /etc/systemd/journald.conf.d
        printf '[Journal]\\nStorage=none\\n' > /etc/systemd/journald.conf.d/none.conf
        systemctl restart systemd-journald && rm -rf /run/log/journal /var/log/journal
        """,
        "journalctl --quiet --lines 1 | wc --lines",
        "0",
    ),
    "rules of nftables": Variation(
        """
        nft 'table inet old { chain input { type filter hook input priority 0; tcp dport 9999 drop; }; }'
        """,
        "nft list table inet old | grep 9999 | tr -d '\\t'",
        "tcp dport 9999 drop",
    ),
    "rotation of logs": Variation(
        "printf '/var/log/nginx/short.log {\\n rotate 2\\n size 1M\\n}\\n' > /etc/logrotate.d/aaa-old",
        "logrotate --debug /etc/logrotate.conf 2>&1 | grep --count 'error:.*funnel\\|aaa-old'",
        "1",
    ),
    "restricted modes of new homes": Variation(
        "sed -i 's/^#\\?HOME_MODE.*/HOME_MODE 0700/; s/^UMASK.*/UMASK 077/' /etc/login.defs",
        "grep '^HOME_MODE' /etc/login.defs",
        "HOME_MODE 0700",
    ),
    "files for new homes": Variation(
        "echo exit > /etc/skel/.bashrc; mkdir /etc/skel/releases",
        "ls /etc/skel",
        "releases",
    ),
    "a configuration of pip": Variation(
        "printf 'require-virtualenv = true\\n[install]\\nuser = true\\n' >> /etc/pip.conf",
        "tail -n 1 /etc/pip.conf",
        "user = true",
    ),
    "variables in the startup files of the shell": Variation(
        """
        printf '%s\\n' 'export PIP_INDEX_URL=http://127.0.0.1:9/ UV_DEFAULT_INDEX=http://127.0.0.1:9/ PIP_NO_INDEX=1' \\
            'export PYTHONDONTWRITEBYTECODE=1 VIRTUAL_ENV=/opt/none GIT_DIR=/none LC_ALL=C; echo Welcome >&2' \\
            | cat - ~/.bashrc > ~/new 2> /dev/null; mv ~/new ~/.bashrc
        """,
        "head -n 1 ~/.bashrc | cut -c -20",
        "export PIP_INDEX_URL",
    ),
    "another python3 in the path": Variation(
        "printf '#!/bin/sh\\nexec /usr/bin/python3 \"$@\"\\n' > /usr/local/bin/python3; chmod +x /usr/local/bin/python3",
        "/usr/local/bin/python3 -c 'print(42)'",
        "42",
    ),
    "a banner of sshd": Variation(
        """
        echo 'Authorized use only' > /etc/issue.net
        echo 'Banner /etc/issue.net' > /etc/ssh/sshd_config.d/banner.conf
        systemctl reload ssh
        """,
        "sshd -T | grep '^banner'",
        "banner /etc/issue.net",
    ),
    "/etc in git": Variation(
        """
        cd /etc && git init --quiet && git add hostname
        git -c user.name=root -c user.email=root@localhost commit --quiet --message etc
        """,
        "env --unset GIT_DIR git -C /etc log --oneline | wc --lines",
        "1",
    ),
    # Packages
    "a package source that does not answer": Variation(
        "echo 'deb [trusted=yes] http://127.0.0.1:9/ stable main' > /etc/apt/sources.list.d/dead.list",
        "cat /etc/apt/sources.list.d/dead.list | cut -d ' ' -f 3",
        "http://127.0.0.1:9/",
    ),
    "packages on hold": Variation(
        "apt-mark hold nginx > /dev/null",
        "apt-mark showhold",
        "nginx",
    ),
    "a package that cannot be configured": Variation(
        """
        mkdir -p /tmp/broken/DEBIAN && cd /tmp/broken/DEBIAN
        printf '%s\\n' 'Package: broken' 'Version: 1' 'Architecture: all' 'Maintainer: a <a@b.test>' 'Description: a' > control
        printf '#!/bin/sh\\nexit 1\\n' > postinst && chmod 755 postinst
        dpkg-deb --build /tmp/broken /tmp/broken.deb > /dev/null; ! dpkg --install /tmp/broken.deb > /dev/null 2>&1
        """,
        "dpkg-query --show --showformat='${db:Status-Status}' broken",
        "half-configured",
    ),
    "packages without documentation": Variation(
        "echo 'path-exclude=/usr/share/doc/*' > /etc/dpkg/dpkg.cfg.d/excludes",
        "cat /etc/dpkg/dpkg.cfg.d/excludes",
        "path-exclude=/usr/share/doc/*",
    ),
    "a proxy for all downloads": Variation(
        f"""
        printf '\\nBasicAuth ann hunter2\\n' >> /etc/tinyproxy/tinyproxy.conf
        systemctl restart tinyproxy
        echo 'Acquire::http::Proxy "{PROXY}";' > /etc/apt/apt.conf.d/90proxy
        nft 'table inet closed {{ chain output {{
            type filter hook output priority 0; oifname != "lo" meta skuid != tinyproxy ct state new reject;
        }}; }}'
        """,
        "curl --silent --max-time 3 --output /dev/null --write-out '%{http_code}' http://deb.debian.org/",
        "000",
    ),
    # File systems
    "noexec on /var/tmp": Variation(
        "mount -t tmpfs -o noexec,nosuid,nodev tmp /var/tmp",
        "findmnt --noheadings --output OPTIONS /var/tmp | grep --only-matching noexec",
        "noexec",
    ),
    "a home that is read-only": Variation(
        "mkdir -p /root/.ansible/tmp; mount --bind /root /root && mount -o remount,bind,ro /root",
        "touch /root/x 2>&1",
        "touch: cannot touch '/root/x': Read-only file system",
    ),
}


@dataclass(frozen=True)
class Refusal:
    """What an app or the host must change first: commands that cause it and undo it, keys of an app, and the message."""

    message: str
    prepare: str = "true"
    undo: str = "true"
    keys: dict[str, Any] = field(default_factory=dict)


#: By the name of the app that is refused, next to the variations above.
REFUSALS = {
    "backup": Refusal("tornado_apps.backup: the host already has a user, a group or a directory of that name"),
    "operators": Refusal("tornado_apps.operators: the host already has a user, a group or a directory of that name"),
    "repos": Refusal("tornado_apps.repos: the host already has a user, a group or a directory of that name in /srv"),
    "backend": Refusal("tornado_apps.backend: /etc/nginx/sites-enabled/proxy.conf:1 has an upstream or a zone of this name"),
    "perip": Refusal("tornado_apps.perip: /etc/nginx/sites-enabled/proxy.conf:2 has an upstream or a zone of this name"),
    "mapped": Refusal(
        "tornado_apps.mapped.domains: map.test is already served by /etc/nginx/sites-enabled/map:1; remove it in one of them",
        keys={"domains": ["map.test"]},
    ),
    "sixth": Refusal(
        "tornado_apps.sixth.domains: six.test is already served by /etc/nginx/sites-enabled/six:1; remove it in one of them",
        keys={"domains": ["six.test"]},
    ),
    "hosted": Refusal(
        "tornado_apps.hosted.domains: vhost.test is already served by /etc/nginx/vhosts/vhost.vhost:1; remove it in one of them",
        keys={"domains": ["vhost.test"]},
    ),
    "aliased": Refusal(
        "tornado_apps.aliased.aliases: moved.test is already served by /etc/nginx/sites-enabled/moved:1",
        keys={"domains": ["aliased.test"], "aliases": ["moved.test"]},
    ),
    "any": Refusal(
        "tornado_apps.any.domains: is missing, and /etc/nginx/sites-enabled/default:",
        keys={"domains": []},
    ),
    "ported": Refusal(
        "tornado_apps.ported.port: port 8080 is in use by python3 (pid ",
        keys={"run": {"command": "python web.py {port}"}, "port": 8080},
    ),
    "greedy": Refusal(
        "tornado_apps.greedy.open_files: must be at most 20000, the limit of this host", keys={"open_files": 90000}
    ),
    "slotted": Refusal(
        "tornado_apps.slotted: /etc/supervisor/conf.d/slotted.conf has a program slotted-b, the name of a slot of this app",
        "printf '[program:slotted-b]\\ncommand=cat\\n' > /etc/supervisor/conf.d/slotted.conf",
        "rm /etc/supervisor/conf.d/slotted.conf",
    ),
    "included": Refusal(
        "/etc/supervisor/supervisord.conf has [include] /opt/*.ini, but includes only /etc/supervisor/conf.d/*.conf in future",
        "sed -i 's|^files = .*|& /opt/*.ini|' /etc/supervisor/supervisord.conf",
        "sed -i 's| /opt/\\*.ini$||' /etc/supervisor/supervisord.conf",
    ),
    "programmed": Refusal(
        "/etc/supervisor/supervisord.conf has [program:main], but includes only /etc/supervisor/conf.d/*.conf in future",
        "printf '[program:main]\\ncommand=cat\\n' >> /etc/supervisor/supervisord.conf",
        "sed -i '/^.program:main/,$d' /etc/supervisor/supervisord.conf",
    ),
    "opened": Refusal(
        "/etc/supervisor/supervisord.conf has chmod=0777 in [unix_http_server], but includes only",
        "sed -i 's/^chmod=0700/chmod=0777/' /etc/supervisor/supervisord.conf",
        "sed -i 's/^chmod=0777/chmod=0700/' /etc/supervisor/supervisord.conf",
    ),
    "limited": Refusal(
        "supervisord cannot start with 4096 open files, which /etc/systemd/system/supervisor.service.d/x.conf sets",
        """
        mkdir -p /etc/systemd/system/supervisor.service.d
        printf '[Service]\\nLimitNOFILE=4096\\n' > /etc/systemd/system/supervisor.service.d/x.conf
        """,
        "rm -r /etc/systemd/system/supervisor.service.d",
    ),
    "logged": Refusal(
        "/etc/nginx/conf.d/off.conf:1: open_file_cache off would apply to all apps; remove it, or move it into a server",
        "echo 'open_file_cache off;' > /etc/nginx/conf.d/off.conf",
        "rm /etc/nginx/conf.d/off.conf",
    ),
    "masked": Refusal(
        "nginx.service is masked, and so cannot start; systemctl unmask nginx.service allows it",
        "ln -s /dev/null /etc/systemd/system/nginx.service && systemctl daemon-reload",
        "rm /etc/systemd/system/nginx.service && systemctl daemon-reload",
    ),
}


def prepare(host: Host, commands: dict[str, str]) -> None:
    """Run commands on a host, each in a shell of its own; fail with the names of those that fail."""
    scripts = [f"( set -e\n{dedent(command)}\n) || echo 'failed: {name}'" for name, command in commands.items()]
    finished = host.run("bash -c %s", "\n".join([FUNCTIONS, *scripts]))
    assert "failed: " not in finished.stdout, finished.stdout + finished.stderr


def probe(host: Host, variations: dict[str, Variation]) -> dict[str, str]:
    """Return the output of the commands that prove that the variations still work, by name."""
    separator = "\x1f"
    scripts = [f"{dedent(variation.probe)}\nprintf '{separator}'" for variation in variations.values()]
    outputs = host.run("bash -c %s", "\n".join([FUNCTIONS, *scripts])).stdout.split(separator)
    return {name: output.strip("\n") for name, output in zip(variations, outputs, strict=False)}
