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


def test_a_second_deploy_is_told_whose_the_first_is_since_when_and_where_it_is(layout: Layout) -> None:
    with deploy_lock(layout, "alice@desk") as note:
        note("drain of release 1f2e")
        with pytest.raises(LockedError) as caught, deploy_lock(layout, "bob@desk"):
            pass
    message = str(caught.value)
    assert message.startswith("shop: another deploy runs on this host: alice@desk's, since 20")
    assert message.endswith(", now at drain of release 1f2e; try again when it has ended")


def test_a_second_deploy_waits_as_long_as_it_may(layout: Layout) -> None:
    began = time.monotonic()
    with deploy_lock(layout, "alice@desk"), pytest.raises(LockedError), deploy_lock(layout, "bob@desk", wait=0.2):
        pass
    assert time.monotonic() - began >= 0.2


def test_the_lock_of_a_killed_deploy_is_free_and_its_words_are_no_longer_read(layout: Layout) -> None:
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


def test_whoever_waited_while_the_app_was_removed_still_keeps_all_others_out(layout: Layout) -> None:
    refused: list[str] = []

    def wait_for_it() -> None:
        with deploy_lock(layout, "bob@desk", wait=5):
            try:
                with deploy_lock(layout, "carol@desk"):
                    pass
            except LockedError as error:
                refused.append(str(error))

    waiting = threading.Thread(target=wait_for_it)
    with deploy_lock(layout, "alice@desk"):
        waiting.start()
        time.sleep(0.3)
        layout.lock.unlink()
    waiting.join()
    assert len(refused) == 1
    assert "bob@desk" in refused[0]
