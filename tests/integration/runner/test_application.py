"""Import and creation of the application."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tests.support.runner import TIMESTAMP, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Serve


KINDS = """
    app = make_app()

    async def make_later():
        await asyncio.sleep(0)
        return make_app()

    class Shop(Application):
        def __init__(self):
            super().__init__([("/", Main)])

    number = 7

    def make_nothing():
        pass

    def fail():
        raise ValueError("no database")
"""
EXPECTED = "expected a tornado.web.Application, or a function without arguments that returns one"


def test_applications_and_factories_are_served(serve: Serve, tmp_path: Path) -> None:
    for attribute in ("app", "make_app", "make_app()", "make_later", "Shop"):
        process = serve(target=f"web:{attribute}", cwd=write_app(tmp_path, more=KINDS))
        assert process.fetch("/").body == b"one"


FACTORIES = """
    import argparse, sys
    import tornado.options

    arguments = argparse.ArgumentParser().parse_args()
    tornado.options.define("shop_port", 80)
    tornado.options.parse_command_line()
    loops = []

    async def connect():
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        assert sys.argv[1:] == []

    class Loop(RequestHandler):
        def get(self):
            assert loops[-1] is asyncio.get_running_loop()
            self.write(str(len(loops)))

    def make_loop_app():
        return Application([("/", Loop)])

    def run_sync():
        IOLoop.current().run_sync(connect)
        return make_loop_app()

    def run_both():
        asyncio.run(connect())
        asyncio.set_event_loop(asyncio.new_event_loop())
        return make_app()

    def needs_running_loop():
        loops.append(asyncio.get_running_loop())
        return make_loop_app()

    async def in_loop():
        await connect()
        return make_loop_app()

    imported = run_sync()
"""


def test_factories_may_use_the_event_loop_before_or_while_it_runs(serve: Serve, tmp_path: Path) -> None:
    """A resource that is created in ``run_sync`` belongs to the loop that serves."""
    write_app(tmp_path, more=FACTORIES)
    bodies = {"run_sync": b"2", "run_both": b"one", "needs_running_loop": b"2", "in_loop": b"2", "imported": b"1"}
    processes = {name: serve(target=f"web:{name}", cwd=tmp_path) for name in bodies}
    assert {name: process.fetch("/").body for name, process in processes.items()} == bodies


def test_import_may_need_the_running_event_loop(serve: Serve, tmp_path: Path) -> None:
    process = serve(target="web:make_app", cwd=write_app(tmp_path, more="asyncio.get_running_loop()"))
    assert process.fetch("/").body == b"one"


def test_application_finds_a_command_line_without_arguments(serve: Serve, tmp_path: Path) -> None:
    """Also after a hot reload, which needs the arguments again."""
    process = serve("--debug", target="web:make_loop_app", cwd=write_app(tmp_path, more=FACTORIES))
    time.sleep(0.6)
    write_app(tmp_path, more=FACTORIES.replace("80", "8080"))
    process.wait_for(" serving ", times=2)
    assert process.popen.poll() is None


def test_invalid_targets_are_reported_in_one_line(spawn: Serve, tmp_path: Path) -> None:
    errors = {
        "none:app": "cannot import none: no module named none in ",
        "web:none": f"module web has no none; {EXPECTED}",
        "web:number": f"web:number is of type int; {EXPECTED}",
        "web:make_nothing": f"web:make_nothing returned an object of type NoneType; {EXPECTED}",
        "web:fail": "cannot create web:fail: ValueError: no database",
    }
    write_app(tmp_path, more=KINDS)
    processes = {target: spawn("--port", "0", target=target, cwd=tmp_path) for target in errors}
    for target, process in processes.items():
        assert process.wait() == 1
        assert re.fullmatch(rf"{TIMESTAMP} CRITICAL runner \[pid {process.pid}\] {re.escape(errors[target])}.*", process.lines[0])
        assert len(process.lines) == 1 or target == "web:fail"


def test_traceback_contains_only_the_applications_code(spawn: Serve, tmp_path: Path) -> None:
    errors = {
        "import shop.missing": "cannot import web: ModuleNotFoundError: No module named 'shop'",
        "def broken(:": "cannot import web: SyntaxError: ",
        "import sys; sys.exit('bye')": "cannot import web: SystemExit: bye",
    }
    processes = {}
    for number, text in enumerate(errors):
        (tmp_path / str(number)).mkdir()
        processes[text] = spawn("--port", "0", target="web:app", cwd=write_app(tmp_path / str(number), text))
    for number, (text, process) in enumerate(processes.items()):
        assert process.wait() == 1
        assert errors[text] in process.lines[0]
        assert f'File "{tmp_path}/{number}/web.py", line 1' in process.log
        assert "files/runner" not in process.log
        assert "importlib" not in process.log


def test_logging_configuration_of_the_application_hides_neither_a_failure_nor_the_access_log(
    spawn: Serve, serve: Serve, tmp_path: Path
) -> None:
    configure = "import logging.config; logging.config.dictConfig({'version': 1})"
    failing = spawn("--port", "0", target="web:app", cwd=write_app(tmp_path, f"{configure}; missing"))
    assert failing.wait() == 1
    assert "cannot import web: NameError: name 'missing' is not defined" in failing.lines[0]
    process = serve(target="web:make_app", cwd=write_app(tmp_path, more=configure))
    process.fetch("/")
    process.wait_for("INFO  tornado.access .* 200 GET /")


def test_modules_of_the_runner_do_not_shadow_those_of_the_application(serve: Serve, tmp_path: Path) -> None:
    for name in ("runner", "options", "metrics"):
        (tmp_path / f"{name}.py").write_text(f"NAME = 'own {name}'")
    more = """
        import sys
        import metrics, options, runner

        class Main(RequestHandler):
            def get(self):
                self.write({"names": [runner.NAME, options.NAME, metrics.NAME], "path": sys.path})
    """
    found = serve(target="web:make_app", cwd=write_app(tmp_path, more=more)).fetch("/").json
    assert found["names"] == ["own runner", "own options", "own metrics"]
    assert found["path"][0] == str(tmp_path)
    assert not [path for path in found["path"] if "roles/app/files" in path]
