# The manual setup: serves the app in /opt/app as in Tornado's documentation, with the same packages as site.yml, the
# documentation's nginx.conf in front of a Tornado per CPU, and supervisord.
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y update
apt-get -q -y install --no-install-recommends ca-certificates git nginx python3 python3-venv supervisor
python3 -m venv /opt/uv
/opt/uv/bin/pip -q install uv==0.13.8
python3 -m venv /opt/venv
/opt/venv/bin/pip -q install --requirement /opt/app/requirements.txt

last=$(($(nproc) - 1))
cat > /etc/supervisor/conf.d/bench.conf <<SUPERVISOR
[program:bench]
command=/opt/venv/bin/python /opt/app/bench_app.py --port=80%(process_num)02d
process_name=bench-%(process_num)d
numprocs=$((last + 1))
user=www-data
[program:shared]
command=/opt/venv/bin/python /opt/app/bench_app.py --port=8082 --reuse
process_name=shared-%(process_num)d
numprocs=$((last + 1))
autostart=false
user=www-data
SUPERVISOR
supervisorctl update

cat > /etc/nginx/nginx.conf <<NGINX
user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log;
pid /run/nginx.pid;
events {
    worker_connections 1024;
    use epoll;
}
http {
    upstream frontends {
$(for process in $(seq 0 $last); do printf '        server 127.0.0.1:80%02d;\n' "$process"; done)
    }
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    keepalive_timeout 65;
    proxy_read_timeout 200;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    gzip on;
    gzip_min_length 1000;
    gzip_proxied any;
    gzip_types text/plain text/html text/css text/xml application/x-javascript application/xml application/atom+xml text/javascript;
    proxy_next_upstream error;
    server {
        listen 80;
        client_max_body_size 50M;
        location ^~ /static/ {
            root /opt/app;
        }
        location / {
            proxy_pass_header Server;
            proxy_set_header Host \$http_host;
            proxy_redirect off;
            proxy_set_header X-Real-IP \$remote_addr;
            proxy_set_header X-Scheme \$scheme;
            proxy_pass http://frontends;
        }
    }
}
NGINX
nginx -t
systemctl reload nginx
until python3 -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1/healthz")' 2>/dev/null; do sleep 0.2; done
