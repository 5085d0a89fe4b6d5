import signal
import subprocess
import sys

import psutil
import pytest

from paralab.processes.with_parent import with_parent

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
