from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout("shop", base=tmp_path)
    layout.home.mkdir(parents=True)
    return layout


def test_a_refused_deploy_names_the_holder_its_start_and_its_step(layout: Layout) -> None:
    with deploy_lock(layout, "alice@desk") as note_step:
        note_step("drain of release 1f2e")
        with pytest.raises(LockedError) as caught, deploy_lock(layout, "bob@desk"):
            pass
    message = str(caught.value)
    assert message.startswith("shop: another deploy is running on this host, started by alice@desk at 20")
    assert message.endswith(", current step: drain of release 1f2e; try again when it has finished")


def test_a_second_deploy_waits_until_its_timeout(layout: Layout) -> None:
    began = time.monotonic()
    with deploy_lock(layout, "alice@desk"), pytest.raises(LockedError), deploy_lock(layout, "bob@desk", wait=0.2):
        pass
    assert time.monotonic() - began >= 0.2


def test_a_killed_deploy_releases_the_lock_and_its_description_is_replaced(layout: Layout) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout\n"
        "from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock\n"
        f"with deploy_lock(Layout('shop', base=Path({str(layout.base)!r})), 'carol@desk'): print(flush=True); time.sleep(60)\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=paths) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(LockedError, match="carol@desk"), deploy_lock(layout, "bob@desk"):
            pass
        holder.kill()
    assert "carol@desk" in layout.lock.read_text()
    with deploy_lock(layout, "bob@desk"):
        assert "bob@desk" in layout.lock.read_text()
    assert layout.lock.read_text() == ""


def test_a_deploy_that_waited_for_the_removal_of_the_app_excludes_others(layout: Layout) -> None:
    refused: list[str] = []

    def wait_for_lock() -> None:
        with deploy_lock(layout, "bob@desk", wait=5):
            try:
                with deploy_lock(layout, "carol@desk"):
                    pass
            except LockedError as error:
                refused.append(str(error))

    waiting = threading.Thread(target=wait_for_lock)
    with deploy_lock(layout, "alice@desk"):
        waiting.start()
        time.sleep(0.3)
        layout.lock.unlink()
    waiting.join()
    assert len(refused) == 1
    assert "bob@desk" in refused[0]
