"""Commands whose output is closed, or whose reader has gone, end as if it were read."""

import subprocess
import sys

import pytest

PROGRAM = "import sys; from paralab.cli import main; "


def run(program: str, redirected: str) -> subprocess.CompletedProcess:
    command = [
        "bash",
        "-c",
        f'"$0" -c "$1" {redirected}; echo "status ${{PIPESTATUS[0]}}" >&2',
        sys.executable,
        program,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("redirected", ["| true", ">&-", ">&- 2>/dev/null <&-", "> /dev/null"])
def test_what_nobody_reads_is_dropped(redirected: str) -> None:
    done = run(PROGRAM + "[main(['--help']) for _ in range(2000)]; sys.exit(main(['--version']))", redirected)
    assert (done.stdout, done.stderr) == ("", "status 0\n")


@pytest.mark.parametrize("words", [["--help"], ["strategies", "--help"]])
def test_a_disk_that_is_full_is_one_line(words: list[str]) -> None:
    done = run(PROGRAM + f"sys.exit(main({words}))", "> /dev/full")
    said = "paralab: error: what this command printed could not be written: No space left on device"
    assert done.stderr.splitlines() == [said, "status 1"]


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    program = "import sys; sys.stdout.reconfigure(encoding='{}', errors='{}'); "
    program += "from paralab.console import streams; streams.keep_open(); print('\\xe9 \\udcff')"
    assert run(program.format("utf-8", "strict"), "").stdout == "é \\udcff\n"
    assert run(program.format("ascii", "strict"), "").stdout == "\\xe9 \\udcff\n"
    program = program.replace("\\udcff", "")  # as in the locale C, where bytes of paths are given back
    assert run(program.format("ascii", "surrogateescape"), "").stdout == "\\xe9 \n"


def test_a_folder_that_is_gone_is_one_line() -> None:
    done = run("import os, tempfile; gone = tempfile.mkdtemp(); os.chdir(gone); os.rmdir(gone); "
               f"{PROGRAM}sys.exit(main(['strategies']))", "")  # fmt: skip
    (line, status) = done.stderr.splitlines()
    assert line.startswith("paralab: error: the folder in which this was typed is gone") and status == "status 2"
