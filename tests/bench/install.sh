# What a careful administrator would type: the same packages as site.yml installs, and the app's environment.
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y update
apt-get -q -y install --no-install-recommends ca-certificates git nginx python3 python3-venv supervisor
python3 -m venv /opt/uv
/opt/uv/bin/pip -q install uv==0.13.8
python3 -m venv /opt/app
/opt/app/bin/pip -q install tornado==6.6.1
