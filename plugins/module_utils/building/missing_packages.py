"""Advice on failed builds and processes: the packages with the compilers, headers, libraries and programs that they lacked."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The option of a compiler for the headers of the distribution's Python, which a build needs together with the compiler.
_PYTHON_HEADERS = "-I/usr/include/python3"

#: The message of a compiler about a header, and of a linker about a library, whatever package has it.
_UNKNOWN = r"fatal error: (\S+\.h(?:pp)?): No such file or directory|cannot find (-l\S+?)(?::|$)"

#: The message of a compiler or an interpreter that a header, and of a shell that a program does not exist.
_HEADER = r"{}: No such file or directory|{} file not found"
_PROGRAM = (
    r"(?<![\w./-]){1}{0}['\"]?: (?:(?:command )?not found|No such file or directory)"
    r"|No such file or directory: ['\"]?{1}{0}(?!\S*[\w.])|command ['\"]{1}{0}['\"] failed: No such file"
)

#: What may precede the name of a program in a build: its absolute path, or the platform of a compiler.
_BEFORE = r"(?:/\S*[/-]|[\w-]+-)?"

#: What may precede the name of a program at run time: only a directory of programs, because an app has files of any name.
_RUN_BEFORE = r"(?:/(?:usr/)?(?:local/)?s?bin/)?"

#: Limits of the examined output, so that no pattern needs long: lines at its end, and characters of a line.
MAX_LINES, MAX_LINE = 2_000, 300

#: Packages by regular expressions of headers, and of programs.
HEADERS = {
    r"(?:Python|pyconfig)\.h": "python3-dev",
    r"(?:libpq-fe|pg_config|postgres_fe)\.h": "libpq-dev",
    r"(?:mysql|mysql/mysql)\.h": "default-libmysqlclient-dev",
    r"ffi\.h": "libffi-dev",
    r"(?:openssl/\w+)\.h": "libssl-dev",
    r"(?:libxml/\w+)\.h": "libxml2-dev",
    r"(?:libxslt/\w+)\.h": "libxslt1-dev",
    r"xmlsec/\w+\.h": "libxmlsec1-dev",
    r"jpeglib\.h": "libjpeg-dev",
    r"zlib\.h": "zlib1g-dev",
    r"(?:lber|ldap)\.h": "libldap-dev",
    r"sasl/sasl\.h|sasl\.h": "libsasl2-dev",
    r"yaml\.h": "libyaml-dev",
    r"curl/curl\.h": "libcurl4-openssl-dev",
    r"sqlite3\.h": "libsqlite3-dev",
    r"(?:snappy-c|snappy)\.h": "libsnappy-dev",
    r"krb5\.h|gssapi(?:/gssapi)?\.h": "libkrb5-dev",
    r"(?:stdio|stdlib|limits|string)\.h": "build-essential",
}
PROGRAMS = {
    r"(?:gcc|cc|c\+\+|g\+\+|make)": "build-essential",
    r"pg_config": "libpq-dev",
    r"mysql_config": "default-libmysqlclient-dev",
    r"pkg-config": "pkg-config",
    r"(?:cargo|rustc)": "cargo",
    r"cmake": "cmake",
    r"curl-config": "libcurl4-openssl-dev",
    r"krb5-config": "libkrb5-dev",
    r"xml2-config": "libxml2-dev",
    r"xslt-config": "libxslt1-dev",
    r"swig": "swig",
    r"gfortran": "gfortran",
    r"(?:node|nodejs)": "nodejs",
    r"npm": "npm",
    r"git": "git",
}

#: Packages by messages of common build programs.
MESSAGES = {
    r"pg_config executable not found": "libpq-dev",
    r"(?:mysql_config|mysqlclient|mariadb_config).{0,40}not found|Can not find valid pkg-config name": (
        "default-libmysqlclient-dev pkg-config"
    ),
    r"headers or library files could not be found for jpeg": "libjpeg-dev",
    r"headers or library files could not be found for zlib": "zlib1g-dev",
    r"make sure the libxml2 and libxslt development packages are installed": "libxml2-dev libxslt1-dev",
    r"pkg-config was not found|Did not find pkg-config": "pkg-config",
    r"can't find Rust compiler|[Cc]argo, the Rust package manager, is not installed": "cargo",
    r"Package '?libffi'?.{0,40}not found": "libffi-dev",
    r"Package '?xmlsec1'?.{0,40}not found|xmlsec1 is not installed": "libxmlsec1-dev",
    r"cannot find -lpq\b": "libpq-dev",
    r"Unknown compiler\(s\)|[Nn]o acceptable C compiler found": "build-essential",
}


#: Packages by the shared libraries and programs that Python packages find at run time, and by their messages without them.
LIBRARIES = {
    r"libGL\.so": "libgl1",
    r"libpq\.so": "libpq5",
    r"libmariadb\.so|libmysqlclient\.so": "libmariadb3",
    r"libodbc\.so": "unixodbc",
    r"libgomp\.so": "libgomp1",
    r"libsndfile\.so": "libsndfile1",
    r"libgobject-2\.0|gobject-2\.0-0|libpango": "libpango-1.0-0 libpangoft2-1.0-0",
    r"libcairo\.so|cairo-2": "libcairo2",
    r"libzbar\.so": "libzbar0",
    r"mod_spatialite": "libsqlite3-mod-spatialite",
}
RUN_PROGRAMS = {
    r"(?:ffmpeg|ffprobe)": "ffmpeg",
    r"(?:node|nodejs)": "nodejs",
    r"git": "git",
    r"dot": "graphviz",
    r"(?:convert|magick)": "imagemagick",
    r"tesseract": "tesseract-ocr",
    r"(?:pdftotext|pdftoppm|pdfinfo)": "poppler-utils",
    r"pandoc": "pandoc",
    r"(?:psql|pg_dump)": "postgresql-client",
}
RUN_MESSAGES = {
    r"ImportError: no pq wrapper available|libpq library not found": "libpq5",
    r"failed to find libmagic": "libmagic1",
    r"Bad git executable": "git",
    r"Could not find the GDAL library": "gdal-bin",
    r"failed to execute PosixPath\('dot'\)": "graphviz",
}

#: Messages about a library that the dynamic linker, or ctypes and cffi, do not find.
_LIBRARY = r"(?:{})\S*?: cannot open shared object file|cannot load library '?(?:{})"

#: Modules that Python environments had until Python 3.12, and old packages import without declaring it.
_SETUPTOOLS = re.compile(r"No module named '(?:pkg_resources|setuptools|distutils)\b")


def find_missing_packages(output: str) -> list[str]:
    """Return the packages that a failed build lacked, according to its output."""
    patterns = {_HEADER.format(header, header): package for header, package in HEADERS.items()}
    packages = _matching(patterns | _program_patterns(PROGRAMS, _BEFORE) | MESSAGES, _end(output))
    if "build-essential" in packages and _PYTHON_HEADERS in output:  # a line of a compiler is longer than those of the end
        packages.append("python3-dev")
    return list(dict.fromkeys(packages))


def advice(key: str, output: str) -> str:
    """Return a line that names the packages to add to ``key``; empty if none is known to be missing."""
    if packages := find_missing_packages(output):
        return f"\n{key}: add {', '.join(packages)}, which the build lacks"
    unknown = [header or library for header, library in re.findall(_UNKNOWN, _end(output), re.MULTILINE)]
    return f"\n{key}: add the Debian package with {unknown[0]}, which the build lacks" if unknown else ""


def process_advice(app: str, output: str) -> str:
    """Return a line that names the packages that a process or hook lacked, according to its output; empty if unknown.

    :arg app: path of the app's entry in the inventory.
    """
    output = _end(output)
    patterns = {_LIBRARY.format(library, library): package for library, package in LIBRARIES.items()}
    if packages := _matching(patterns | _program_patterns(RUN_PROGRAMS, _RUN_BEFORE) | RUN_MESSAGES, output):
        return f"\n{app}.packages: add {', '.join(packages)}, which the app lacks"
    if _SETUPTOOLS.search(output):
        return f"\n{app}.source: add setuptools<81 to the dependencies; a package of the app needs it without declaring it"
    return ""


def _end(output: str) -> str:
    return "\n".join(line[:MAX_LINE] for line in output.split("\n")[-MAX_LINES:])


def _program_patterns(programs: Mapping[str, str], before: str) -> dict[str, str]:
    return {_PROGRAM.format(program, before): package for program, package in programs.items()}


def _matching(patterns: Mapping[str, str], output: str) -> list[str]:
    found = (package for pattern, names in patterns.items() if re.search(pattern, output) for package in names.split())
    return list(dict.fromkeys(found))
