from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, app_certificates, site_owner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import (
    HostFacts,
    host_problems,
    load,
    memory_warnings,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

HOST = HostFacts(cpus=2, open_files=20_000, taken_names=frozenset({"backup"}))


def entry(**keys: Any) -> dict[str, Any]:
    return {"source": {"path": "files/sample_app"}, "run": {"app": "shop.web:make_app"}, **keys}


def command(command: str, **keys: Any) -> dict[str, Any]:
    return entry(run={"command": command}, **keys)


def problems(entries: object) -> list[str]:
    """Return the problems of ``entries``; those with the host only if there are no others."""
    try:
        return list(host_problems(load(entries), HOST))
    except InvalidDataError as error:
        return error.problems


def shop(**keys: Any) -> App:
    return load({"shop": entry(**keys)})["shop"]


def test_source_directory_is_valid_with_debug() -> None:
    assert shop(source={"directory": "/home/ann/shop"}, debug=True, watch=["config.yml"]).source.directory == "/home/ann/shop"


def site_entries(**mounted: dict[str, Any]) -> dict[str, Any]:
    """Return an app that owns a site, and apps mounted in that site."""
    shop = entry(domains=["a.example", "b.example"], static={}, paths={"/own/": {}}, tls={"provider": "self_signed"})
    return {"shop": shop, **{name: entry(domains=["b.example", "a.example"], **keys) for name, keys in mounted.items()}}


def test_prefix_mounts_an_app_in_the_site_of_another() -> None:
    apps = load(
        site_entries(
            api={"prefix": "/api/", "static": {"url": "/api/static/"}, "paths": {"/api/x": {}}}, new={"prefix": "/api/v2/"}
        )
    )
    assert site_owner(apps["api"], apps.values()) == site_owner(apps["new"], apps.values()) == apps["shop"]
    assert app_certificates(apps).keys() == {"shop"}


def test_prefix_mounts_an_app_in_the_default_site() -> None:
    apps = load({"shop": entry(), "api": entry(prefix="/api/")})
    assert site_owner(apps["api"], apps.values()) == apps["shop"]


def test_incomplete_entries_skip_the_rules_between_apps() -> None:
    assert load({"api": entry(prefix="/api/")}, complete=False)["api"].prefix == "/api/"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"shop": entry(watch=["a"])}, ["tornado_apps.shop.watch: requires debug: true"]),
        ({"shop": entry(debug=True, watch=["/a"])}, ["tornado_apps.shop.watch[0]: must be a file inside the source"]),
        (
            {"shop": entry(debug=True, processes=2)},
            ["tornado_apps.shop.processes: must be 1 with debug, because only a single process"],
        ),
        ({"shop": command("a {socket}", debug=True)}, ["tornado_apps.shop.debug: requires run.app, run.wsgi or run.asgi"]),
        (
            {"shop": entry(source={"directory": "/home/ann/shop"})},
            ["tornado_apps.shop.source.directory: runs in place, for development only, and requires debug: true"],
        ),
        (
            {"shop": entry(source={"directory": "shop"}, debug=True)},
            ["tornado_apps.shop.source.directory: must be the absolute path of a directory on the host"],
        ),
        (
            {"api": entry(prefix="/api/", domains=["a.example"]), "shop": entry(domains=["a.example", "b.example"])},
            [
                "tornado_apps.api.prefix: the site of a.example requires an app without a prefix and with the same domains",
            ],
        ),
        (
            {"api": entry(prefix="/api/")},
            ["tornado_apps.api.prefix: the default site requires an app without a prefix and with the same domains"],
        ),
        ({"shop": entry(), "api": entry(prefix="/api")}, ["tornado_apps.api.prefix: must be a path between slashes"]),
        (site_entries(api={"prefix": "/.funnel/"}), ["tornado_apps.api.prefix: /.funnel/ is reserved for the site itself"]),
        (
            site_entries(api={"prefix": "/static/"}),
            ["tornado_apps.shop.static.url: /static/ lies below /static/, which tornado_apps.api serves; move it there"],
        ),
        (
            site_entries(api={"prefix": "/own/"}),
            ["tornado_apps.shop.paths./own/: /own/ lies below /own/, which tornado_apps.api serves; move"],
        ),
        (
            {
                "shop": entry(static={"url": "/api/static/"}, paths={"/api/upload/": {}, "/api": {}, "/apis/": {}}),
                "api": entry(prefix="/api/"),
            },
            [
                "tornado_apps.shop.static.url: /api/static/ lies below /api/, which tornado_apps.api serves;",
                "tornado_apps.shop.paths./api/upload/: /api/upload/ lies below /api/, which tornado_apps.api serves;",
            ],
        ),
        (
            site_entries(api={"prefix": "/api/", "paths": {"/api/v2/": {}, "/api/v2/x": {}}}, new={"prefix": "/api/v2/"}),
            [
                "tornado_apps.api.paths./api/v2/: /api/v2/ lies below /api/v2/, which tornado_apps.new serves;",
                "tornado_apps.api.paths./api/v2/x: /api/v2/x lies below /api/v2/, which tornado_apps.new serves;",
            ],
        ),
        (
            site_entries(api={"prefix": "/api/", "static": {"url": "/api/"}}),
            ["tornado_apps.api.static.url: must be a path below /api/; set options of all of /api/ in tornado_apps.api itself"],
        ),
        (
            {"shop": entry(static={"url": "/.funnel/"})},
            ["tornado_apps.shop.static.url: /.funnel/ is already in use or reserved; choose another path"],
        ),
        (
            site_entries(api={"prefix": "/api/"}, new={"prefix": "/api/"}),
            [
                "tornado_apps.new.prefix: /api/ of the site of b.example, a.example already belongs to tornado_apps.api; "
                "choose another"
            ],
        ),
        (
            site_entries(api={"prefix": "/api/", "static": {}, "paths": {"/x": {}, "/api/": {}}}),
            [
                "tornado_apps.api.static.url: must begin with /api/, the prefix of tornado_apps.api; found '/static/'",
                "tornado_apps.api.paths./x: must begin with /api/, the prefix of tornado_apps.api; found '/x'",
                "tornado_apps.api.paths./api/: must be a path below /api/; set options of all of /api/ in tornado_apps.api",
            ],
        ),
        (
            site_entries(
                api={
                    "prefix": "/api/",
                    "aliases": ["c.example"],
                    "basic_auth": {"ann": "$6$salt$hash"},
                    "headers": {"X-A": "1"},
                    "maintenance": {"retry_after": 1},
                    "tls": {"provider": "self_signed"},
                }
            ),
            [
                f"tornado_apps.api.{key}: is an option of the whole site; set it in tornado_apps.shop.{key}"
                for key in ("aliases", "basic_auth", "headers", "maintenance", "tls")
            ],
        ),
    ],
)
def test_invalid_debug_and_prefix_options_are_reported(entries: object, expected: list[str]) -> None:
    found = problems(entries)
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_unquoted_off_which_yaml_parses_as_false_is_accepted() -> None:
    assert shop(tls={"provider": False}).tls.provider == "off"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["shop"], "tornado_apps: must be a dict of apps by name; found list"),
        ({"shop": "app"}, "tornado_apps.shop: must be dict, such as {source: ...}; found 'app'"),
        ({"Shop": entry()}, "tornado_apps.Shop: an app name must be a lowercase letter followed by up to 30 of a-z 0-9 _ -"),
        (
            {"nginx": entry()},
            "tornado_apps.nginx: the name nginx is reserved for a service of this collection; choose another",
        ),
        (
            {"backup": entry()},
            "tornado_apps.backup: the host already has a user, a group or a directory of that name in /srv or /var/log",
        ),
        ({"shop": {"run": {"app": "a:b"}}}, "tornado_apps.shop.source: is required; must be dict, such as {path: ...}"),
        ({"shop": entry(domain=["a.example"])}, "tornado_apps.shop.domain: unknown key; did you mean domains?"),
        ({"shop": entry(name="other")}, "tornado_apps.shop.name: unknown key;"),
        (
            {"shop": entry(source={})},
            "tornado_apps.shop.source: set exactly one of path, git, archive, package, push, directory; found none",
        ),
        (
            {"shop": entry(source={"path": ".", "git": "x"})},
            "tornado_apps.shop.source: set exactly one of path, git, archive, package, push, directory; found path and git",
        ),
        (
            {"shop": entry(source={"path": ".", "version": "v1"})},
            "tornado_apps.shop.source.version: requires source.git or source.package; this is source.path",
        ),
        (
            {"shop": entry(source={"path": ".", "subdirectory": "backend"})},
            "tornado_apps.shop.source.subdirectory: requires source.git or source.push or source.archive; this is source.path",
        ),
        (
            {"shop": entry(source={"git": "https://user:token@git.example/shop.git"})},
            "tornado_apps.shop.source.git: contains credentials, which the process list would show to all users of the host",
        ),
        (
            {"shop": entry(source={"package": "shop"})},
            "tornado_apps.shop.source.version: is missing; without it the same entry could build a different release later",
        ),
        (
            {"shop": entry(source={"archive": "https://a.example/shop.tar.gz"})},
            "tornado_apps.shop.source.checksum: is missing; it verifies the download from a URL",
        ),
        (
            {"shop": entry(source={"archive": "shop.zip", "checksum": "md5:1"})},
            'tornado_apps.shop.source.checksum: must be "sha256:" and 64 hexadecimal digits; found',
        ),
        (
            {"shop": entry(run={"app": "a:b", "threads": 4})},
            "tornado_apps.shop.run.threads: requires run.wsgi",
        ),
        (
            {"shop": entry(run={"command": "a {socket}", "loop": "uvloop"})},
            "tornado_apps.shop.run.loop: requires run.app, run.wsgi or run.asgi",
        ),
        (
            {"shop": entry(run={"procfile": "web", "scale": {"worker": 1}}, port=8000)},
            "tornado_apps.shop.run.scale: was replaced by the key workers of the app, such as workers: {worker: {count: 2}}",
        ),
        (
            {"shop": entry(run={"procfile": "web"})},
            "tornado_apps.shop.run.procfile: requires a port, such as port: 8000, because its processes listen on $PORT",
        ),
        (
            {"shop": entry(run={"procfile": "web"}, workers={"web": {"count": 2}}, port=8000)},
            "tornado_apps.shop.workers.web: is the process type that serves requests; set processes instead",
        ),
        (
            {"shop": entry(workers={"queue": {"command": "python q.py", "count": -1}})},
            "tornado_apps.shop.workers.queue.count: must be from 0 to 256; found -1",
        ),
        (
            {"shop": entry(workers={"queue": {"count": 2}})},
            "tornado_apps.shop.workers.queue.command: is missing; only the workers of a Procfile have one there",
        ),
        (
            {"shop": entry(workers={"beat": {"command": "celery beat", "count": 2, "singleton": True}})},
            "tornado_apps.shop.workers.beat.count: must be at most 1 for a singleton; found 2",
        ),
        (
            {"shop": entry(workers={"queue": {"command": "q {port}"}})},
            "tornado_apps.shop.workers.queue.command: unknown placeholder {port}; use {process}. Write a literal brace twice",
        ),
        (
            {"shop": entry(workers={"queue": {"command": "q", "stop_signal": "SIGTERM"}})},
            'tornado_apps.shop.workers.queue.stop_signal: must be "TERM" or "INT" or ',
        ),
        (
            {"shop": entry(workers={"a.b": {"command": "q"}})},
            "tornado_apps.shop.workers.a.b: a worker's name must have up to 30 letters, digits, _ and -",
        ),
        (
            {"shop": entry(run={"procfile": "web"}, source={"package": "shop", "version": "1"}, port=8000)},
            "tornado_apps.shop.run.procfile: requires a source with a Procfile; source.package has none",
        ),
        (
            {"shop": entry(hooks={"build": "make 'css"})},
            "tornado_apps.shop.hooks.build: no closing quotation; found",
        ),
        (
            {"shop": entry(hooks={"before_switch": {"command": " ", "once": True}})},
            "tornado_apps.shop.hooks.before_switch: must be a program and its arguments; found ' '",
        ),
        (
            {"shop": entry(build={"env": {"1A": "x"}})},
            "tornado_apps.shop.build.env.1A: a variable name must consist of letters, digits and _",
        ),
        ({"shop": entry(build={"env": {"PATH": "/x"}})}, "tornado_apps.shop.build.env.PATH: is set by the build; remove it"),
        ({"shop": entry(tls={"provider": "acme"})}, "tornado_apps.shop.tls: requires domains for the certificate to cover"),
        (
            {"shop": entry(tls={"provider": True})},
            'tornado_apps.shop.tls.provider: must be "off" or "self_signed" or "files" or "acme"; found True',
        ),
        (
            {"shop": entry(tls={"provider": "acme"}, domains=["*.a.example"])},
            "tornado_apps.shop.tls.provider: acme validates each name over HTTP, which *.a.example does not support; set",
        ),
        (
            {"shop": entry(tls={"provider": "files", "key": "k.pem"}, domains=["a.example"])},
            "tornado_apps.shop.tls.certificate: is missing; provider: files requires certificate and key, PEM files",
        ),
        (
            {"shop": entry(tls={"key": "k.pem"})},
            "tornado_apps.shop.tls.key: requires provider: files; found off",
        ),
        (
            {"shop": entry(tls={"hsts": 300})},
            "tornado_apps.shop.tls.hsts: requires a provider; browsers accept HSTS over HTTPS only",
        ),
        (
            {"shop": entry(python={"version": "2.7"})},
            'tornado_apps.shop.python.version: must be "system" or a version, such as "3.13"; found \'2.7\'',
        ),
        (
            {"shop": entry(source={"git": "u", "version": "--upload-pack=x"})},
            "tornado_apps.shop.source.version: must be the name of a branch or tag, a commit, or a version; found '--up",
        ),
        (
            {"shop": entry(run={"app": "shop.web"})},
            "tornado_apps.shop.run.app: must be module:attribute, such as \"shop.web:make_app\"; found 'shop.web'",
        ),
        ({"shop": entry(processes="many")}, "tornado_apps.shop.processes: must be int or \"auto\"; found 'many'"),
        ({"shop": entry(processes=True)}, 'tornado_apps.shop.processes: must be int or "auto"; found True'),
        ({"shop": entry(processes=0)}, "tornado_apps.shop.processes: must be from 1 to 256; found 0"),
        ({"shop": entry(port="8000")}, "tornado_apps.shop.port: must be int; found '8000'"),
        ({"shop": entry(port=80)}, "tornado_apps.shop.port: must be from 1024 to 65535; found 80"),
        ({"shop": entry(port=65534)}, "tornado_apps.shop.port: uses ports up to 65537; the highest port is 65535"),
        ({"shop": entry(domains="a.example")}, "tornado_apps.shop.domains: must be list of str; found 'a.example'"),
        (
            {"shop": entry(domains=["a b"])},
            "tornado_apps.shop.domains[0]: must be a domain name in lower case; found 'a b'",
        ),
        ({"shop": entry(domains=["a.example", "a.example"])}, "tornado_apps.shop.domains: a.example is listed twice"),
        ({"shop": entry(env={"PORT": 1})}, "tornado_apps.shop.env.PORT: is set by the launcher; choose another name"),
        (
            {"shop": entry(env={"DEBUG": True})},
            "tornado_apps.shop.env.DEBUG: must be str or int; found True, a boolean in YAML; put",
        ),
        ({"shop": entry(env={"a b": "x"})}, "tornado_apps.shop.env.a b: a variable name must consist of letters, digits and _"),
        ({"shop": entry(env={"K": "1"}, secrets={"K": "2"})}, "tornado_apps.shop.secrets.K: is also in env; keep one of them"),
        (
            {"shop": entry(static={"path": "../etc"})},
            "tornado_apps.shop.static.path: must be a directory inside the source, relative to it; found '../etc'",
        ),
        ({"shop": entry(static={"url": "static"})}, "tornado_apps.shop.static.url: must be a path between slashes"),
        (
            {"shop": entry(paths={"/static/": {}}, static={})},
            "tornado_apps.shop.paths./static/: /static/ is already in use or reserved",
        ),
        (
            {"shop": entry(paths={"/live/": {"buffring": True}})},
            "tornado_apps.shop.paths./live/.buffring: unknown key; did you mean buffering?",
        ),
        (
            {"shop": entry(allow=["10.0.0.1/8"])},
            "tornado_apps.shop.allow[0]: must be an IP address or a network, such as",
        ),
        (
            {"shop": entry(basic_auth={"ann": "hunter2"})},
            "tornado_apps.shop.basic_auth.ann: must be a hash, as openssl passwd -6 or htpasswd -B prints it; "
            "never the password itself; found (not shown)",
        ),
        (
            {"shop": entry(domains=["a.example"]), "blog": entry(domains=["b.example"], aliases=["a.example"])},
            "tornado_apps.blog.aliases: a.example already belongs to tornado_apps.shop; names must be unique",
        ),
        (
            {"shop": entry(aliases=["a.example"])},
            "tornado_apps.shop.aliases: redirect to the first of domains, which must be a name without *",
        ),
        ({"shop": entry(health={"pth": "/"})}, "tornado_apps.shop.health.pth: unknown key; did you mean path?"),
        ({"shop": entry(health={"path": "//a"})}, "tornado_apps.shop.health.path: must be a path that starts with /"),
        ({"shop": entry(health={"path": "/a/../b"})}, "tornado_apps.shop.health.path: must be a path that starts with /"),
        ({"shop": entry(health={"status": 200})}, "tornado_apps.shop.health.status: must be list of int or str; found 200"),
        (
            {"shop": entry(health={"status": [200, 503]})},
            "tornado_apps.shop.health.status[1]: must be from 200 to 499",
        ),
        ({"shop": entry(health={"status": ["2xx"]})}, "tornado_apps.shop.health.status[0]: must be a code or a range"),
        ({"shop": entry(health={"status": ["399-300"]})}, "tornado_apps.shop.health.status[0]: must begin with the lower code"),
        ({"shop": entry(health={"status": []})}, "tornado_apps.shop.health.status: is empty"),
        ({"shop": entry(health={"headers": {"X Y": ""}})}, "tornado_apps.shop.health.headers.X Y: a header name must"),
        ({"shop": entry(health={"headers": {"X": 'a"; b'}})}, "tornado_apps.shop.health.headers.X: must be one line"),
        ({"shop": entry(health={"headers": {"host": "a/b"}})}, "tornado_apps.shop.health.headers.host: must be a host name"),
        ({"shop": entry(health={"headers": {"Connection": "close"}})}, "tornado_apps.shop.health.headers.Connection: is set by"),
        (
            {"shop": entry(upload_size="50 MB")},
            "tornado_apps.shop.upload_size: must be a size, such as \"50m\"; found '50 MB'",
        ),
        (
            {"shop": entry(open_files=50_000)},
            "tornado_apps.shop.open_files: must be at most 20000, the limit of this host; found 50000",
        ),
        (
            {"shop": command("python app.py")},
            "tornado_apps.shop.run.command: must listen on {socket}, or the app must have a port, such as port: 8000",
        ),
        (
            {"shop": command("python app.py {socket}", port=8000)},
            "tornado_apps.shop.run.command: listens on {socket}, but the app has a port; remove one of them",
        ),
        (
            {"shop": command("python app.py --port={prot}", port=8000)},
            "tornado_apps.shop.run.command: unknown placeholder {prot}; use {port}, {process}, {socket}.",
        ),
        (
            {"shop": entry(affinity="cookies")},
            'tornado_apps.shop.affinity: must be "none" or "cookie" or "address"; found \'cookies\'',
        ),
        (
            {"shop": entry(affinity="cookie", processes=1)},
            "tornado_apps.shop.affinity: has no effect with processes: 1 and no load balancers; remove it, or set more processes",
        ),
        (
            {"shop": entry(balance={"sticky": False})},
            "tornado_apps.shop.balance.sticky: was replaced by the key affinity of the app; set affinity: cookie there",
        ),
        ({"shop": command("python 'app.py", port=8000)}, "tornado_apps.shop.run.command: no closing quotation; found"),
        (
            {"shop": entry(domains=["a.example"]), "blog": entry(domains=["a.example"])},
            "tornado_apps.blog.domains: a.example already belongs to tornado_apps.shop; names must be unique",
        ),
        (
            {"shop": entry(), "blog": entry()},
            "tornado_apps.blog.domains: tornado_apps.shop is already the default for other names; only one may have no domains",
        ),
        (
            {"shop": entry(port=8000), "blog": entry(port=8003, domains=["b.example"])},
            "tornado_apps.blog.port: uses ports 8003 to 8006, which overlap with those of shop; change one of them",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_path_and_remedy(entries: object, expected: str) -> None:
    found = problems(entries)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_affinity_is_useful_for_one_process_per_host_behind_load_balancers_and_harmless_on_one_cpu() -> None:
    behind_balancers = dataclasses.replace(HOST, balanced=True)
    assert not list(host_problems(load({"shop": entry(affinity="cookie", processes=1)}), behind_balancers))
    assert not list(host_problems(load({"shop": entry(affinity="address")}), dataclasses.replace(HOST, cpus=1)))


def test_all_mistakes_are_reported_at_once() -> None:
    entries = {"shop": entry(drian=1, port=80), "blog": entry(run={"app": 3}, processes=-1)}
    assert len(problems(entries)) == 4


def test_invalid_secrets_are_not_quoted() -> None:
    assert problems({"shop": entry(secrets={"KEY": ["hunter2"]})}) == [
        "tornado_apps.shop.secrets.KEY: must be str or int; found (not shown)"
    ]


def test_load_does_not_check_host_limits() -> None:
    assert load({"shop": entry(open_files=1_000_000)})["shop"].open_files == 1_000_000


def test_mistakes_of_schema_and_rules_are_reported_together() -> None:
    keys = entry(drian=5, drain=-1, watch=["a.yml"], hooks={"build": "'"}, tls={"hsts": 60, "redirect": "no"}, env={"A-B": "x"})
    found = problems({"shop": keys})
    assert [problem.split(": ", 1)[0].removeprefix("tornado_apps.shop.") for problem in found] == [
        *("drian", "tls.redirect", "drain", "watch", "hooks.build", "tls.hsts", "env.A-B"),
    ]


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"run": {"command": "serve"}, "port": "8100"}, "port"),
        ({"run": {"command": "serve"}, "prot": 8100}, "prot"),
        ({"watch": ["a.yml"], "debug": "yes"}, "debug"),
        ({"source": {"gti": "x", "version": "1"}}, "source.gti"),
        ({"source": {"path": ".", "git": "x", "checksum": "sha256:0"}}, "source.checksum"),
        ({"tls": {"provider": "acmee", "challenge": "dns"}}, "tls.provider"),
        ({"services": {"mongodb": {"hosts": ["db"]}}, "env": {"MONGODB_URI": "x"}}, "services.mongodb.database"),
        ({"processes": 2.5, "debug": True}, "processes"),
    ],
    ids=str,
)
def test_rules_about_an_invalid_key_wait_until_it_is_corrected(keys: dict[str, Any], path: str) -> None:
    found = problems({"shop": entry(**keys)})
    assert found[0].startswith(f"tornado_apps.shop.{path}: ")
    assert all("set exactly one" in problem for problem in found[1:])


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"source": "../shop"}, "source: must be dict, such as {path: ...}; found '../shop'"),
        ({"run": "python app.py"}, "run: must be dict, such as {app: ...}; found 'python app.py'"),
        ({"run": {"app": "shop/web.py"}}, 'run.app: must be module:attribute, such as "shop.web:make_app"; found'),
        ({"run": {"command": "python app.py --port=8000"}}, "run.command: must listen on {socket}, or the app must have a port"),
        ({"python": "3.12"}, "python: must be dict, such as {version: ...}; found '3.12'"),
        ({"python": {"version": "python3.12"}}, 'python.version: must be "system" or a version, such as "3.13"; found'),
        ({"tls": "acme"}, "tls: must be dict, such as {provider: ...}; found 'acme'"),
        ({"tls": {"provider": "letsencrypt"}}, 'tls.provider: must be "off" or "self_signed" or "files" or "acme"; found'),
        ({"static": "/static"}, "static: must be dict, such as {url: ...}; found '/static'"),
        ({"static": {"path": "/srv/static"}}, "static.path: must be a directory inside the source, relative to it; found"),
        ({"health": "/healthz"}, "health: must be dict, such as {path: ...}; found '/healthz'"),
        ({"health": {"status": [700]}}, "health.status[0]: must be from 200 to 499; found 700"),
        ({"workers": {"q": "celery -A shop"}}, "workers.q: must be dict, such as {command: ...}; found 'celery -A shop'"),
        (
            {"workers": {"q": {"command": "x", "count": 2, "singleton": True}}},
            "workers.q.count: must be at most 1 for a singleton",
        ),
        ({"services": {"mongodb": "mongodb://db/x"}}, "services.mongodb: must be dict, such as {hosts: ...}; found"),
        ({"services": {"redis": {}}}, "services.redis: unknown key; valid keys are mongodb, etcd, syslog"),
        ({"domains": "shop.example.com"}, "domains: must be list of str; found 'shop.example.com'"),
        ({"domains": ["https://shop.example.com/"]}, "domains[0]: must be a domain name in lower case; found"),
        ({"affinity": "sticky"}, 'affinity: must be "none" or "cookie" or "address"; found \'sticky\''),
        ({"affinity": "cookie", "processes": 1}, "affinity: has no effect with processes: 1 and no load balancers; remove it"),
        ({"env": ["SIZE=1"]}, "env: must be dict; found ['SIZE=1']"),
        ({"drain": "30s"}, "drain: must be int; found '30s'"),
        ({"upload_size": "10MB"}, "upload_size: must be a size, such as \"50m\"; found '10MB'"),
        ({"prefix": "api"}, "prefix: must be a path between slashes, such as \"/api/\"; found 'api'"),
        ({"port": 80}, "port: must be from 1024 to 65535; found 80"),
        ({"limits": {"requests": "10r/s"}}, "limits.requests: must be int; found '10r/s'"),
        (
            {"debug": "true"},
            "debug: must be bool; found 'true', a string; remove the quotes, or end its template with the filter bool",
        ),
        (
            {"port": "8000"},
            "port: must be int; found '8000', a string; remove the quotes, or end its template with the filter int",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_frequent_mistake_has_one_message_with_its_key_and_the_cure(keys: dict[str, Any], problem: str) -> None:
    (found,) = problems({"shop": entry(**keys)})
    assert found.startswith(f"tornado_apps.shop.{problem}")


def test_dependencies_must_exist_and_have_an_order() -> None:
    def dependent(**depends_on: list[str]) -> list[str]:
        return problems({name: entry(domains=[f"{name}.test"], depends_on=names) for name, names in depends_on.items()})

    assert dependent(shop=["accounts"], accounts=["mail"], mail=[]) == []
    assert dependent(shop=["account"], accounts=[]) == [
        "tornado_apps.shop.depends_on[0]: no such app account; did you mean accounts?"
    ]
    [problem] = dependent(shop=["accounts"], accounts=["shop"])
    assert re.fullmatch(
        r"tornado_apps\.(\w+)\.depends_on: the apps depend on each other: \1 -> \w+ -> \1; remove one dependency", problem
    )
    [problem] = dependent(shop=["shop"])
    assert "shop -> shop" in problem


@pytest.mark.parametrize(
    ("available", "used", "sizes"),
    [
        (100 << 20, {"shop": 120 << 20}, "120 MiB beside its present ones, and 100 MiB of memory"),
        (40 << 20, {}, "48 MiB beside its present ones, and 40 MiB of memory"),
        (100 << 20, {"shop": 90 << 20}, None),
        (50 << 20, {}, None),
    ],
)
def test_memory_that_a_second_slot_lacks_is_reported(available: int, used: dict[str, int], sizes: str | None) -> None:
    found = list(memory_warnings([shop()], available, used, HOST, "web1"))
    assert len(found) == bool(sizes)
    assert all(str(sizes) in warning for warning in found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "python: {version: 3.10}",
            'python.version: must be "system" or a version, such as "3.13"; found 3.1, a number in YAML; put it',
        ),
        (
            "source: {git: u, version: 1.10}",
            "source.version: must be the name of a branch or tag, a commit, or a version; found 1.1, a n",
        ),
        ("env: {DEBUG: yes}", "env.DEBUG: must be str or int; found True, a boolean in YAML; put it in quotes"),
        ("env: {RELEASE: 1.10}", "env.RELEASE: must be str or int; found 1.1, a number in YAML; put it in quotes"),
        ("env: {SINCE: 2026-01-31}", "env.SINCE: must be str or int; found 2026-01-31, a date in YAML; put it in quotes"),
        ("env: {NO: x}", "env.False: the key is False, a boolean in YAML; put it in quotes"),
        ("env: {2026-01-31: x}", "env.2026-01-31: the key is 2026-01-31, a date in YAML; put it in quotes"),
        ("env: {1.10: x}", "env.1.1: the key is 1.1, a number in YAML; put it in quotes"),
        ("secrets: {PIN: 0.70}", "secrets.PIN: must be str or int; found (not shown), a number in YAML; put it in quotes"),
        (
            "build: {env: {NODE_ENV: on}}",
            "build.env.NODE_ENV: must be str or int; found True, a boolean in YAML; put it in quotes",
        ),
        (
            "headers: {X-XSS-Protection: 0}",
            "headers.X-XSS-Protection: must be one line without double quotes and backslashes; found 0, a",
        ),
        ("domains: [no]", "domains[0]: must be a domain name in lower case; found False, a boolean in YAML; put it in quotes"),
        ("domains: no", "domains: must be list of str; found False"),
        ("upload_size: 50", 'upload_size: must be a size, such as "50m"; found 50, a number in YAML; put it in quotes'),
        (
            "packages: [7.2]",
            'packages[0]: must be the name of a Debian package, such as "ffmpeg"; found 7.2, a number in YAML; put',
        ),
        ("static: on", "static: must be dict, such as {url: ...}; found True"),
        ("hooks: {build: true}", "hooks.build: must be str; found True, a boolean in YAML; put it in quotes"),
        ("read_timeout: 0:30", "read_timeout: must be int; found '0:30'"),
    ],
)
def test_a_word_that_yaml_reads_as_another_type_is_rejected_with_the_cure(text: str, problem: str) -> None:
    (found,) = problems({"shop": entry(**yaml.safe_load(text))})
    assert found.startswith(f"tornado_apps.shop.{problem}")
