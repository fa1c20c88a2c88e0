from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.sites.name_conflicts import name_conflicts, places

OURS = "funnel/app.shop.conf"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def warning(name: str) -> str:
    return f'nginx: [warn] conflicting server name "{name}" on 0.0.0.0:80, ignored\n'


def test_a_conflict_names_the_file_and_line_of_the_other_site(tmp_path: Path) -> None:
    write(tmp_path, OURS, "server {\n    server_name shop.test www.shop.test;\n}\n")
    write(tmp_path, "sites-enabled/aaa", "server {\n    listen 80;\n    server_name a.test\n        shop.test;\n}\n")
    write(tmp_path, "conf.d/b.conf", "# server_name shop.test;\nserver { server_name my-shop.test shop.test.example; }\n")
    assert list(places(tmp_path, "shop.test")) == [
        ("/etc/nginx/sites-enabled/aaa, line 3", "sites-enabled/aaa"),
        ("/etc/nginx/funnel/app.shop.conf, line 2", OURS),
    ]
    found = name_conflicts(warning("shop.test") * 2, tmp_path, [OURS])
    assert (
        found
        == "server name shop.test is also in /etc/nginx/sites-enabled/aaa, line 3: remove it there, or from the domains here"
    )


def test_conflicts_between_sites_of_others_are_not_ours(tmp_path: Path) -> None:
    write(tmp_path, OURS, "server { server_name shop.test; }")
    for name in ("conf.d/a.conf", "conf.d/b.conf"):
        write(tmp_path, name, "server { server_name a.test; }")
    assert name_conflicts(warning("a.test") + warning(""), tmp_path, [OURS]) == ""
    assert name_conflicts("", tmp_path, [OURS]) == ""
