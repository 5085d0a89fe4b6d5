"""The lanes that share the whole suite: what must not run beside itself stays in one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import TOGETHER

SLOW_TEST = """
import json, os, time

def test_it():
    began = time.time()
    time.sleep(0.1)
    with open({log!r}, "a") as log:
        print(json.dumps([{name!r}, os.environ["PYTEST_XDIST_WORKER"], began, time.time()]), file=log)
"""


def test_what_must_not_run_beside_itself_stays_in_one_lane(tmp_path: Path) -> None:
    """Real lanes over files of every folder: dist is in one, as are files of e2e that share things, and comes last."""
    log = tmp_path / "log"
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nnorecursedirs = build\ntestpaths = tests\n")
    for folder in ("dist", "e2e", "unit"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        for number in range(4):
            files = {f"{folder}_{number}": f"test_{folder}_{number}.py"}
            if folder == "e2e":
                files[f"together_{number}"] = TOGETHER[number]
            for name, file in files.items():
                (tmp_path / "tests" / folder / file).write_text(SLOW_TEST.format(log=str(log), name=name))
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path / "tests")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

    ran = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda test: test[2])
    assert len(ran) == 16
    lanes = {start: {lane for name, lane, *_ in ran if name.startswith(start)} for start in ("dist", "e2e", "together")}
    assert len(lanes["together"]) == len(lanes["dist"]) == 1
    assert lanes["e2e"] - lanes["together"], "the other whole commands run beside those"
    assert len({lane for _, lane, *_ in ran}) == 2
    # workers need every core: they come last, when a lane finds no other files
    names = [name.partition("_")[0] for name, *_ in ran]
    assert set(names[:4]) <= {"e2e", "together"}
    assert [name for name, lane, *_ in ran if {lane} == lanes["dist"]][-1].startswith("dist")
