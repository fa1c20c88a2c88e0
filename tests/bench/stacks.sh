# Two more ways of serving the app of this host: nginx as Tornado's documentation shows it, and Tornados on one port.
mkdir -p /etc/bench
cat > /etc/bench/nginx.conf <<'NGINX'
user www-data;
worker_processes 1;
error_log /var/log/nginx/bench-error.log;
pid /run/bench-nginx.pid;
events {
    worker_connections 1024;
    use epoll;
}
http {
    upstream frontends {
UPSTREAM
    }
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/bench-access.log;
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
        listen 8081;
        client_max_body_size 50M;
        location / {
            proxy_pass_header Server;
            proxy_set_header Host $http_host;
            proxy_redirect off;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Scheme $scheme;
            proxy_pass http://frontends;
        }
    }
}
NGINX
tornado() {  # tornado NAME OPTION...: the same runner and app as the collection's
    name=$1; shift
    systemd-run --quiet --unit="bench-$name" --uid=sample --working-directory=/srv/sample/current/src \
        --property="StandardError=append:/var/log/bench-$name.log" \
        /srv/sample/current/venv/bin/python ../runner.py sample_app.web:make_app "$@"
}
servers=""
for process in $(seq 0 $(($(nproc) - 1))); do
    servers="$servers        server 127.0.0.1:$((9000 + process));\n"
    tornado "port-$process" --port $((9000 + process)) --xheaders
    tornado "shared-$process" --port 8082 --address 0.0.0.0 --reuse-port
done
sed -i "s/^UPSTREAM$/$servers/" /etc/bench/nginx.conf
sleep 2
nginx -c /etc/bench/nginx.conf
