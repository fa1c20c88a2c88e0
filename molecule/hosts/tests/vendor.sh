# A host with nginx.org's package, whose nginx.conf, user, unit and paths differ from Debian's. It contains Debian's program, since
# the tests have no access to nginx.org. Caddy has port 80, sudo requires a terminal, pip has a further index, nginx has a unit of
# the administrator, and there is another supervisord.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends caddy curl libpcre2-8-0 sudo supervisor >/dev/null 2>&1
useradd --create-home --shell /bin/bash ann
cp -r /root/.ssh /home/ann
chown -R ann: /home/ann/.ssh
printf 'Defaults requiretty\nann ALL=(ALL:ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/ann

cd "$(mktemp -d)"
apt-get download -qq -o APT::Sandbox::User=root nginx nginx-common
mkdir -p debian vendor/DEBIAN vendor/usr/sbin vendor/usr/lib/nginx/modules vendor/usr/lib/systemd/system vendor/usr/share/nginx/html
mkdir -p vendor/etc/nginx/conf.d vendor/etc/logrotate.d vendor/var/log/nginx vendor/var/cache/nginx vendor/var/lib/nginx
for package in *.deb; do dpkg -x "$package" debian; done
cp debian/usr/sbin/nginx vendor/usr/sbin
cp debian/etc/nginx/mime.types debian/etc/nginx/*_params vendor/etc/nginx
ln -s /usr/lib/nginx/modules vendor/etc/nginx/modules
echo 'Welcome to nginx!' > vendor/usr/share/nginx/html/index.html
cat > vendor/etc/nginx/nginx.conf <<'END'

user  nginx;
worker_processes  auto;

error_log  /var/log/nginx/error.log notice;
pid        /run/nginx.pid;


events {
    worker_connections  1024;
}


http {
    include       /etc/nginx/mime.types;
    default_type  application/octet-stream;

    log_format  main  '$remote_addr - $remote_user [$time_local] "$request" '
                      '$status $body_bytes_sent "$http_referer" '
                      '"$http_user_agent" "$http_x_forwarded_for"';

    access_log  /var/log/nginx/access.log  main;

    sendfile        on;
    #tcp_nopush     on;

    keepalive_timeout  65;

    #gzip  on;

    include /etc/nginx/conf.d/*.conf;
}
END
cat > vendor/etc/nginx/conf.d/default.conf <<'END'
server {
    listen       80;
    server_name  localhost;

    location / {
        root   /usr/share/nginx/html;
        index  index.html index.htm;
    }
}
END
cat > vendor/usr/lib/systemd/system/nginx.service <<'END'
[Unit]
Description=nginx - high performance web server
After=network-online.target remote-fs.target nss-lookup.target
Wants=network-online.target

[Service]
Type=forking
PIDFile=/run/nginx.pid
ExecStart=/usr/sbin/nginx -c ${CONFFILE}
ExecReload=/bin/sh -c "/bin/kill -s HUP $(/bin/cat /run/nginx.pid)"
ExecStop=/bin/sh -c "/bin/kill -s TERM $(/bin/cat /run/nginx.pid)"
Environment="CONFFILE=/etc/nginx/nginx.conf"
EnvironmentFile=-/etc/default/nginx

[Install]
WantedBy=multi-user.target
END
cat > vendor/etc/logrotate.d/nginx <<'END'
/var/log/nginx/*.log {
        daily
        missingok
        rotate 52
        compress
        delaycompress
        notifempty
        create 640 nginx adm
        sharedscripts
        postrotate
                if [ -f /run/nginx.pid ]; then
                        kill -USR1 `cat /run/nginx.pid`
                fi
        endscript
}
END
cat > vendor/DEBIAN/control <<END
Package: nginx
Version: $(dpkg-deb --field nginx_*.deb Version | cut -d - -f 1)-99~vendor
Architecture: $(dpkg --print-architecture)
Maintainer: NGINX Packaging <nginx-packaging@example.com>
Depends: adduser, libc6, libcrypt1, libpcre2-8-0, libssl3t64 | libssl3, zlib1g
Provides: httpd, nginx-r1.99.0
Replaces: nginx-common, nginx-core
Conflicts: nginx-common, nginx-core
Description: high performance web server
END
(cd vendor && find etc -type f -printf '/%p\n') > vendor/DEBIAN/conffiles
cat > vendor/DEBIAN/postinst <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && ! getent passwd nginx > /dev/null; then
    adduser --system --group --disabled-login --no-create-home --home /nonexistent --gecos 'nginx user' --shell /bin/false nginx
fi
systemctl enable --quiet nginx
END
chmod 755 vendor/DEBIAN/postinst
dpkg-deb --build --root-owner-group vendor nginx.deb > /dev/null
apt-get install -qq -o APT::Sandbox::User=root ./nginx.deb > /dev/null 2>&1

# A site whose files only nginx can read.
mkdir -p /srv/www/private
echo private > /srv/www/private/index.html
chmod -R u=rwX,g=rX,o= /srv/www/private
chown -R root:nginx /srv/www/private
echo 'server { listen 80; server_name private.test; root /srv/www/private; }' > /etc/nginx/conf.d/private.conf

# A package that only the index in pip.conf has.
mkdir -p /srv/index/inhouse
cd /srv/index/inhouse
python3 - <<'END'
import zipfile
with zipfile.ZipFile("inhouse-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("inhouse.py", "GREETING = 'in-house'\n")
    wheel.writestr("inhouse-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: inhouse\nVersion: 1.0\n")
    wheel.writestr("inhouse-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("inhouse-1.0.dist-info/RECORD", "")
END
systemd-run --quiet --unit=index python3 -m http.server 8099 --bind 127.0.0.1 --directory /srv/index
printf '[install]\nextra-index-url = http://127.0.0.1:8099\ntrusted-host = 127.0.0.1\n' >> /etc/pip.conf

# A unit of nginx with another file for the process id.
unit=/etc/systemd/system/nginx.service
sed 's|/run/nginx.pid|/run/nginx/nginx.pid|; s|^Type=.*|&\nRuntimeDirectory=nginx|' /usr/lib/systemd/system/nginx.service > $unit
sed -i 's|/run/nginx.pid|/run/nginx/nginx.pid|' /etc/nginx/nginx.conf

# A supervisord as pip installs it, with its configuration where supervisorctl searches first.
cat > /etc/supervisord.conf <<'END'
[unix_http_server]
file=/run/other.sock
[supervisord]
pidfile=/run/other.pid
logfile=/var/log/other.log
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///run/other.sock
[program:legacy]
command=python3 -m http.server 8098 --bind 127.0.0.1 --directory /usr/share/nginx/html
END
printf '[Service]\nExecStart=/usr/bin/supervisord -n -c /etc/supervisord.conf\n' > /etc/systemd/system/other.service
systemctl daemon-reload
systemctl start other
