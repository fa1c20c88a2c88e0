# The peers on the host of the manual setup: gunicorn with uvicorn workers behind the distribution's nginx, configured as in
# gunicorn's documentation, and a TLS server with nginx's defaults. CERTIFICATE and KEY are PEM texts.
/opt/venv/bin/pip -q install gunicorn==23.0.0 "uvicorn[standard]==0.38.0"
mkdir -p /etc/nginx/peer
printf '%s\n' "$CERTIFICATE" > /etc/nginx/peer/certificate.pem
printf '%s\n' "$KEY" > /etc/nginx/peer/key.pem

cat > /etc/supervisor/conf.d/peer.conf <<SUPERVISOR
[program:gunicorn]
command=/opt/venv/bin/gunicorn asgi_app:app --worker-class uvicorn.workers.UvicornWorker --workers $(nproc) --bind unix:/run/gunicorn.sock --access-logfile -
directory=/opt/app
SUPERVISOR
supervisorctl update

cat > /etc/nginx/peer/servers.conf <<'NGINX'
upstream gunicorn {
    server unix:/run/gunicorn.sock fail_timeout=0;
}
server {
    listen 8085;
    location / {
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header Host $http_host;
        proxy_redirect off;
        proxy_pass http://gunicorn;
    }
}
server {
    listen 443 ssl http2;
    server_name secure.test;
    ssl_certificate /etc/nginx/peer/certificate.pem;
    ssl_certificate_key /etc/nginx/peer/key.pem;
    location ^~ /static/ {
        root /opt/app;
    }
}
NGINX
sed -i '$ i include /etc/nginx/peer/servers.conf;' /etc/nginx/nginx.conf
nginx -t
systemctl reload nginx
until python3 -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:8085/")' 2>/dev/null; do sleep 0.2; done
