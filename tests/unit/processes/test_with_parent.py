import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paralab.processes.with_parent import run_whole, with_parent

CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = """
import subprocess, sys
from paralab.processes.with_parent import with_parent
subprocess.run(with_parent([sys.executable, "-c", sys.argv[1]]), check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(number)
        gone, _ = psutil.wait_procs([child], timeout=20)
        assert gone == [child]


def test_a_command_gets_its_arguments_and_gives_its_status() -> None:
    program = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = subprocess.run(with_parent([sys.executable, "-c", program, "-x", "a b", ""]), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (7, b"['-x', 'a b', '']\n")


def test_a_command_whose_time_is_up_puts_away_what_it_has_made(tmp_path: Path) -> None:
    program = """
import signal, sys, time
from pathlib import Path
made = Path(sys.argv[1])
made.touch()
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), made.unlink(), sys.exit(3)))
time.sleep(60)
"""
    with pytest.raises(subprocess.TimeoutExpired):
        run_whole([sys.executable, "-c", program, str(tmp_path / "made")], limit_s=1)
    assert not (tmp_path / "made").exists()
