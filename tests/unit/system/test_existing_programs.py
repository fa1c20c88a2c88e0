"""The programs of the administrator in supervisord."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import ExistingPrograms, existing_programs

PACKAGE = """\
; supervisor config file
[unix_http_server]
file=/var/run/supervisor.sock   ; (the path to the socket file)
chmod=0700                      ; sockef file mode (default 0700)
[supervisord]
[rpcinterface:supervisor]
[supervisorctl]
[include]
files = /etc/supervisor/conf.d/*.conf
"""


def host(root: Path, main: str, **files: str) -> ExistingPrograms:
    (root / "conf.d").mkdir()
    (root / "supervisord.conf").write_text(main)
    for name, text in files.items():
        (root / f"conf.d/{name}.conf").write_text(text)
    return existing_programs(root, root / "other.conf")


def test_the_configuration_of_the_package_loses_nothing(tmp_path: Path) -> None:
    assert host(tmp_path, PACKAGE) == ExistingPrograms()


def test_programs_in_conf_d_have_their_files(tmp_path: Path) -> None:
    app = "[program:shop-a]\ncommand=/srv/shop/releases/0123456789ab/launch.py a %(process_num)d\n"
    found = host(tmp_path, PACKAGE, mine="[program:shop-b]\n[group: web ]\n", app=app)
    assert found.groups == {name: str(tmp_path / "conf.d/mine.conf") for name in ("shop-b", "web")}


def test_sections_that_a_new_file_would_lack_are_found(tmp_path: Path) -> None:
    main = PACKAGE.replace("conf.d/*.conf", "conf.d/*.conf /opt/*.ini") + "[program:x]\n[inet_http_server]\n"
    assert host(tmp_path, main).lost == ["[program:x]", "[inet_http_server]", "[include] /opt/*.ini"]


def test_options_that_programs_depend_on_are_found_without_secrets(tmp_path: Path) -> None:
    main = PACKAGE.replace("[supervisord]", '[supervisord]\nenvironment=DB_PASSWORD="hunter2",C="d"\nloglevel=debug').replace(
        "[unix_http_server]", "[unix_http_server]\nchown=root:deploy"
    )
    main = main.replace("chmod=0700", "chmod=0777")
    lost = ["environment in [supervisord]", "chown=root:deploy in [unix_http_server]", "chmod=0777 in [unix_http_server]"]
    assert host(tmp_path, main).lost == lost


def test_the_collections_own_file_loses_nothing(tmp_path: Path) -> None:
    found = host(tmp_path, "; Ansible managed\n[program:x]\n")
    assert (found.lost, found.managed) == ([], True)


def test_another_supervisord_is_found_with_its_socket(tmp_path: Path) -> None:
    (tmp_path / "other.conf").write_text("[unix_http_server]\nfile = /var/run/supervisor.sock ; as usual\n")
    assert host(tmp_path, PACKAGE).other_socket == "/run/supervisor.sock"


def test_a_link_to_the_configuration_of_the_package_is_no_other_supervisord(tmp_path: Path) -> None:
    (tmp_path / "other.conf").symlink_to("supervisord.conf")
    assert host(tmp_path, PACKAGE).other_socket is None
