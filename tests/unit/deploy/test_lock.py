from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock, preemptible_holder


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
    assert message.endswith(
        ", current step: drain of release 1f2e; try again when it has finished, or preempt it with -e preempt=true"
    )


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


#: Holds the lock in the step "drain" until it is preempted; prints the error. A file ends a holder that ignores the signal.
HOLDER = """
import sys, time; from pathlib import Path
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import PreemptedError, deploy_lock
try:
    with deploy_lock(Layout("shop", base=Path(sys.argv[1])), "carol@desk", preemptible=sys.argv[2] == "yes") as note:
        note("drain of release 1f2e", "1f2e")
        print("held", flush=True)
        time.sleep(60)
except PreemptedError as error:
    print(error, flush=True)
"""


@contextmanager
def held(layout: Layout, preemptible: str = "yes") -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(layout.base), preemptible]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=paths, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_rollback_preempts_a_deploy_which_says_by_whom(layout: Layout) -> None:
    with held(layout) as holder:
        found = preemptible_holder(layout)
        assert found
        assert (found.release, found.pid) == ("1f2e", holder.pid)
        began = time.monotonic()
        with deploy_lock(layout, "bob@desk", preempt="rollback", preemptible=False):
            assert time.monotonic() - began < 1
            assert preemptible_holder(layout) is None
        output, _ = holder.communicate()
    assert output == "shop: this deploy was preempted by a rollback of bob@desk during the step: drain of release 1f2e\n"
    assert sorted(layout.home.iterdir()) == [layout.lock]


def test_a_stopped_deploy_is_killed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PREEMPTION_TIMEOUT", 0.3)
    with held(layout) as holder:
        holder.send_signal(signal.SIGSTOP)
        with deploy_lock(layout, "bob@desk", preempt="rollback"):
            assert holder.wait(5) == -signal.SIGKILL


def test_a_rollback_is_not_preempted(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PREEMPTION_TIMEOUT", 0.2)
    with held(layout, preemptible="no") as holder:
        with pytest.raises(LockedError, match="started by carol@desk"), deploy_lock(layout, "bob@desk", preempt="deploy"):
            pass
        assert holder.poll() is None


def test_a_process_that_does_not_hold_the_lock_is_never_signaled(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PREEMPTION_TIMEOUT", 0.2)
    with subprocess.Popen(["sleep", "60"]) as other, held(layout, preemptible="no") as holder:
        # A file that names another process, as after the reuse of a PID.
        layout.lock.write_text(json.dumps({"by": "", "since": "", "doing": "", "pid": other.pid}))
        assert preemptible_holder(layout) is None
        with pytest.raises(LockedError), deploy_lock(layout, "bob@desk", preempt="rollback"):
            pass
        assert (other.poll(), holder.poll()) == (None, None)
        other.kill()


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
