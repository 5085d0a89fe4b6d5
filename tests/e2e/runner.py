"""A process that runs commands one after another: most of what a command takes is the start of its first process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]


class Runner:
    """Runs `tests.e2e.faults`: commands, with faults in them or without; started again where a test ended it.

    What ranks are forked from stays from command to command as well.
    """

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said"
        self.said.touch()
        self.printed = ""  # on standard output, by the last command that `status` waited for
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.faults"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said.open("a"),
            text=True,
            start_new_session=True,  # a group of its own, to which a test can send signals
        )

    def begin(self, *words: str, folder: Path, fault: str = "none", who: int = 1, when: int = 7) -> None:
        folder.mkdir(exist_ok=True)
        if self.process.poll() is not None:
            self.process = self._start()
        self.before = len(self.said.read_text())
        request = {"words": words, "folder": str(folder), "fault": fault, "who": who, "when": when}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def status(self) -> int:
        """Wait for the command to end; return its exit status."""
        assert self.process.stdout is not None
        self.printed = ""
        for line in self.process.stdout:
            if line.startswith('{"exit_status"'):
                return json.loads(line)["exit_status"]
            self.printed += line
        raise AssertionError(self.said.read_text())

    def run(self, *words: str, folder: Path) -> int:
        """Run a command without a fault; return its exit status."""
        self.begin(*words, folder=folder)
        return self.status()

    def errors(self) -> list[str]:
        lines = self.said.read_text()[self.before :].splitlines()
        return [line for line in lines if "paralab: error" in line or "Traceback" in line]


def wait_for_end(folder: Path, *, within_s: float = 20.0) -> None:
    """Wait until none of the ranks is left whose process ids are in a folder."""
    deadline_s = time.monotonic() + within_s
    while left := [file.name for file in folder.glob("pid*") if is_alive(int(file.read_text()))]:
        assert time.monotonic() < deadline_s, f"left: {left}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
