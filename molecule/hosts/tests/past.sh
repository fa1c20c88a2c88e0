# The past of a host: other sites of nginx, programs of supervisord, a locale that is not UTF-8, a private umask, file systems with
# restrictions, and an administrator whose sudo requires a password and has a short PATH.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends nginx libnginx-mod-stream supervisor locales curl sudo >/dev/null
localedef -i de_DE -f ISO-8859-1 de_DE
echo LANG=de_DE > /etc/default/locale
echo 'session optional pam_umask.so umask=077' >> /etc/pam.d/common-session

# ann exists; her shell prints messages.
echo ann:secret | chpasswd
printf 'Defaults secure_path="/usr/local/bin:/usr/bin:/bin"\nann ALL=(ALL:ALL) ALL\n' > /etc/sudoers.d/ann
printf 'echo Hello\necho Attention >&2\numask 077\n' > /home/ann/.bashrc
chsh -s /bin/bash ann
mkdir -p /data
mv /srv /data/srv
ln -s /data/srv /srv
mount -o remount,hidepid=2 /proc
mount -t tmpfs -o noexec,nosuid,nodev tmp /tmp

mkdir -p /var/www/old
echo old > /var/www/old/index.html
cd /etc/nginx
# By Debian's convention: without a suffix, in sites-available.
echo 'server { listen 80; server_name old.test; root /var/www/old; access_log /var/log/nginx/old.log timed; }' > sites-available/old.test
ln -s ../sites-available/old.test sites-enabled/old.test
# A name that begins like those of the collection.
echo 'server { listen 80; server_name app.example.test; return 200 example; }' > sites-enabled/app.example.test
echo 'server { listen 80; server_name confd.test; return 200 $answer; }' > conf.d/site.conf
# Settings beside nginx.conf that the collection has, too, and a stream.
printf 'keepalive_timeout 33s;\ngzip_types text/css;\nserver_tokens off;\nssl_session_cache shared:old:1m;\n' > conf.d/tuning.conf
echo 'stream { server { listen 3307; proxy_pass 127.0.0.1:8090; } }' > modules-enabled/90-stream.conf
# The site of the package, edited.
echo 'server { listen 80 default_server; listen [::]:80 default_server; server_name _; return 200 default; }' > sites-available/default
# Lines of its own in nginx.conf, also a site.
sed -i 's/worker_connections .*/worker_connections 999;/' nginx.conf
sed -i 's|^http {|http {\n    log_format timed "$remote_addr $request_time";\n    map $host $answer { default "mapped"; }\n    client_max_body_size 77m;\n    server { listen 80; server_name inline.test; return 200 inline; }|' nginx.conf
nginx -t -q
systemctl reload nginx

# A setting of supervisord, and a program that it runs, with an environment for all programs.
sed -i 's/^logfile=.*/&\nloglevel=warn/' /etc/supervisor/supervisord.conf
printf '[supervisord]\nenvironment=OLD="kept"\n' > /etc/supervisor/conf.d/host.conf
printf '[program:mine]\ncommand=python3 -m http.server 8090 --directory /var/www/old\n' > /etc/supervisor/conf.d/mine.conf
systemctl restart supervisor
