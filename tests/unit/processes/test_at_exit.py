"""A thread that has still to release something when the program is over gets to it."""

import subprocess
import sys

PROGRAM = """
import os, threading, time
from paralab.processes.at_exit import wait_for_gloo

def release():
    time.sleep(0.005)
    os.write(1, b"released")

wait_for_gloo()
wait_for_gloo()  # once is enough
threading.Thread(target=release, daemon=True).start()
"""


def test_a_thread_gets_to_its_release_before_python_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "released", "")
