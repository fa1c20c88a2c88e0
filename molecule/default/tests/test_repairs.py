"""Repair: site.yml restores what it laid down, however it was damaged.

This module runs after the comparison of a host without changes: a repaired configuration of supervisord remains pending until
supervisord starts again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.remote import Site, address, expect_success, find_leftovers, run_site

HOST = "ubuntu26"

testinfra_hosts = [f"ansible://{HOST}"]

#: Paths that the collection lays down on an app host.
OWNED = (
    "/etc/nginx /etc/supervisor/supervisord.conf /etc/uv /etc/security/limits.d /etc/sysctl.d /etc/systemd/system /opt/uv"
    " /usr/local/bin/uv"
)

#: Lists them with types, modes, owners, link targets and checksums, then the directories of an app.
LISTING = f"""
find {OWNED} ! -name '*.pyc' -printf '%p %y %m %u:%g %l\\n' | sort
find {OWNED} -type f ! -name '*.pyc' -exec md5sum {{}} + | sort
find /srv/sample /var/log/sample -maxdepth 1 ! -name live ! -name '*.log*' -printf '%p %y %m %u:%g\\n' | sort
"""

#: Damage of different kinds, one for each path.
DELETED_AND_REPLACED = """
rm /etc/uv/uv.toml /etc/security/limits.d/50-funnel.conf /etc/sysctl.d/50-funnel.conf /etc/supervisor/supervisord.conf
rm /etc/nginx/funnel.keepalive /etc/supervisor/conf.d/sample-?.conf /usr/local/bin/uv
rm -r /etc/systemd/system/nginx.service.d /var/log/sample /srv/sample/live/run /srv/sample/cache
rm /srv/sample/history.json /srv/sample/current /srv/sample/live/release/launch.py
echo other > /usr/local/bin/uv
ln -s /etc/hostname /etc/uv/uv.toml
systemctl disable --quiet supervisor
apt-get remove --yes -qq logrotate > /dev/null 2>&1
"""
TRUNCATED_AND_OPENED = """
rm /etc/nginx/funnel/app.sample.health
truncate --size=0 /etc/uv/environment /etc/nginx/funnel/app.sample.conf /opt/uv/*/bin/uv /srv/sample/history.json
truncate --size=100 /srv/sample/live/release/release.json
chmod 0700 /etc/uv
chmod 0777 /etc/nginx/nginx.conf /srv/sample/environments /var/log/sample /srv/sample/live/
chown nobody /etc/security/limits.d/50-funnel.conf /srv/sample/releases
rm -r /srv/sample/live/upstream.conf /srv/sample/live/check /srv/sample/live/release/venv/bin
ln -sf /dev/null /etc/sysctl.d/50-funnel.conf
echo '; edited' >> /etc/supervisor/supervisord.conf
"""


@pytest.mark.parametrize("damage", [DELETED_AND_REPLACED, TRUNCATED_AND_OPENED])
def test_site_repairs_whatever_it_laid_down(host: Host, tmp_path: Path, damage: str) -> None:
    before = host.check_output(LISTING)
    host.run_expect([0], f"set -e\n{damage}")
    assert host.check_output(LISTING) != before
    expect_success(run_site(HOST, tmp_path, {}))
    assert host.check_output(LISTING).splitlines() == before.splitlines()
    assert find_leftovers(host, "sample") == []
    assert Site(address(host)).get("/whoami").status == 200
    host.run_expect([0], "nginx -t -q && logrotate --version && systemctl is-enabled supervisor")
