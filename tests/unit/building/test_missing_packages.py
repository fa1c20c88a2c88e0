from __future__ import annotations

import time

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.missing_packages import (
    advice,
    find_missing_packages,
    process_advice,
)

#: Output of failed builds, by the packages that they lack.
OUTPUT = {
    "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory": ["build-essential"],
    "error: [Errno 2] No such file or directory: 'gcc'": ["build-essential"],
    "src/shop.c:1:10: fatal error: Python.h: No such file or directory": ["python3-dev"],
    "x86_64-linux-gnu-gcc -I/usr/include/python3.11 -c a.c\nerror: command 'x86_64-linux-gnu-gcc' failed: No such file": [
        "build-essential",
        "python3-dev",
    ],
    "x.c:55:14: fatal error: pyconfig.h: No such file or directory": ["python3-dev"],
    "Error: pg_config executable not found.\n\npg_config is required to build psycopg2 from source.": ["libpq-dev"],
    "./psycopg/psycopg.h:36:10: fatal error: libpq-fe.h: No such file or directory": ["libpq-dev"],
    "Exception: Can not find valid pkg-config name.\nSpecify MYSQLCLIENT_CFLAGS": ["default-libmysqlclient-dev", "pkg-config"],
    "/bin/sh: 1: pkg-config: not found\n/bin/sh: 1: mysql_config: not found": ["default-libmysqlclient-dev", "pkg-config"],
    "c/_cffi_backend.c:15:10: fatal error: ffi.h: No such file or directory": ["libffi-dev"],
    "Error: Please make sure the libxml2 and libxslt development packages are installed.": ["libxml2-dev", "libxslt1-dev"],
    "The headers or library files could not be found for jpeg,": ["libjpeg-dev"],
    "fatal error: lber.h: No such file or directory": ["libldap-dev"],
    "error: can't find Rust compiler": ["cargo"],
    "/usr/bin/env: 'node': No such file or directory": ["nodejs"],
    "sh: 1: npm: not found": ["npm"],
    "No such file or directory: npm": ["npm"],
    "/bin/sh: 1: /usr/bin/git: not found": ["git"],
    "make: x86_64-linux-gnu-g++: No such file or directory": ["build-essential"],
    "build failed: assertion in gcc.py": [],
    "cp: cannot stat '/srv/repos/shop.git': No such file or directory": [],
    "ModuleNotFoundError: No module named 'git'": [],
    "fatal error: shop_internal.h: No such file or directory": [],
}


@pytest.mark.parametrize(("output", "packages"), OUTPUT.items())
def test_packages_are_named_by_what_a_build_lacks(output: str, packages: list[str]) -> None:
    assert find_missing_packages(output) == packages


@pytest.mark.parametrize("part", ["a/", "a-linux-gnu-", "No such file or directory: /gcc", "openssl/", "cannot find -l", " "])
def test_output_of_a_build_does_not_delay_the_advice(part: str) -> None:
    began = time.monotonic()
    assert "add" in advice("packages", f"{part * (4_000_000 // len(part))}\nfatal error: Python.h: No such file or directory")
    assert time.monotonic() - began < 10


def test_long_line_of_a_compiler_shows_that_it_needs_the_headers_of_python() -> None:
    output = f"gcc {'-Wall ' * 100}-I/usr/include/python3.11 -c a.c\nerror: command 'gcc' failed: No such file or directory"
    assert advice("packages", output) == "\npackages: add build-essential, python3-dev, which the build lacks"


def test_advice_names_the_key() -> None:
    expected = "\ntornado_apps.shop.packages: add python3-dev, which the build lacks"
    assert advice("tornado_apps.shop.packages", "x.c:1: fatal error: Python.h: No such file or directory") == expected
    assert advice("tornado_apps.shop.packages", "SyntaxError") == ""


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("src/x.c:3:10: fatal error: magic.h: No such file or directory", "magic.h"),
        ("/usr/bin/ld: cannot find -lgmp: No such file or directory", "-lgmp"),
        ("/usr/bin/ld: cannot find -lgmp", "-lgmp"),
    ],
)
def test_what_no_known_package_has_is_named(output: str, name: str) -> None:
    assert advice("tornado_apps.shop.packages", output) == (
        f"\ntornado_apps.shop.packages: add the Debian package with {name}, which the build lacks"
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file: No such file or directory", "packages: add libgl1,"),
        ("ImportError: no pq wrapper available.\n- couldn't import psycopg 'python' implementation", "packages: add libpq5,"),
        ("ImportError: failed to find libmagic.  Check your installation", "packages: add libmagic1,"),
        (
            "OSError: cannot load library 'libgobject-2.0-0': libgobject-2.0-0: cannot open shared object file",
            "packages: add libpango-1.0-0, libpangoft2-1.0-0,",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ffmpeg'", "packages: add ffmpeg,"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/usr/local/bin/node'", "packages: add nodejs,"),
        ("sh: 1: convert: not found", "packages: add imagemagick,"),
        ("/bin/sh: 1: /usr/bin/pandoc: not found", "packages: add pandoc,"),
        ("/usr/bin/pandoc: not found", "packages: add pandoc,"),
        ("/usr/bin/env: 'node': No such file or directory", "packages: add nodejs,"),
        ("ModuleNotFoundError: No module named 'pkg_resources'", "source: add setuptools<81 to the dependencies;"),
    ],
)
def test_a_failed_process_is_told_what_it_lacks(output: str, expected: str) -> None:
    assert process_advice("tornado_apps.shop", output).startswith(f"\ntornado_apps.shop.{expected}")


@pytest.mark.parametrize(
    "output",
    [
        "No module named 'setup'",
        "No such file or directory: 'data/dot'",
        "fatal: not a git repository",
        "FileNotFoundError: [Errno 2] No such file or directory: '/srv/shop/shared/node'",
        "FileNotFoundError: [Errno 2] No such file or directory: '/srv/shop/usr/bin/git'",
        "FileNotFoundError: [Errno 2] No such file or directory: 'web-git'",
        "/srv/repos/shop.git: No such file or directory",
        "/srv/repos/git: No such file or directory",
        "/srv/usr/bin/git: No such file or directory",
        "cat: my-dot: No such file or directory",
    ],
)
def test_other_failures_of_a_process_get_no_advice(output: str) -> None:
    assert process_advice("tornado_apps.shop", output) == ""
