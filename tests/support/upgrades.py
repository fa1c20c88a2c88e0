"""Publishes newer versions of installed packages to a host, for tests of upgrades."""

from __future__ import annotations

from testinfra.host import Host

#: Builds higher versions of installed packages, and an apt source that looks like Debian's security archive.
NEWER = r"""
mkdir --parents /opt/newer && cd /opt/newer
for name in {}; do
    apt-get download -o APT::Sandbox::User=root $name && dpkg-deb --raw-extract ${{name}}_*.deb tree && rm ${{name}}_*.deb || exit
    sed --in-place '/^Version:/s/$/+newer/' tree/DEBIAN/control
    dpkg-deb --build --root-owner-group tree $name.deb && rm --recursive tree || exit
done
for file in *.deb; do
    dpkg-deb --field $file
    digest=$(sha256sum $file | cut --delimiter=' ' --fields=1)
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' $file $(stat --format=%s $file) $digest
done > Packages
. /etc/os-release
digest=$(sha256sum Packages | cut --delimiter=' ' --fields=1)
cat > Release << END
Origin: Debian
Label: Debian-Security
Codename: $VERSION_CODENAME-security
Date: $(date --rfc-email --utc)
SHA256:
 $digest $(stat --format=%s Packages) Packages
END
echo 'deb [trusted=yes] file:/opt/newer ./' > /etc/apt/sources.list.d/newer.list
"""


def publish_newer_packages(host: Host, packages: list[str]) -> None:
    """Publish newer versions of installed packages to apt."""
    host.check_output(NEWER.format(" ".join(packages)))


def versions(host: Host, packages: list[str]) -> list[str]:
    """Return the versions of installed packages."""
    return host.check_output(f"dpkg-query --show --showformat='${{Version}}\\n' {' '.join(packages)}").splitlines()
