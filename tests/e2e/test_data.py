"""`paralab data dedup` over several processes, killed while it works: what was done is kept, the result the same."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from paralab.commands import data
from paralab.options.commands import PROGRAM


def test_a_killed_command_goes_on_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    paragraphs = [" ".join(f"w{rng.randrange(900)}" for _ in range(60)) for _ in range(3_000)]
    paragraphs[2000:2100] = paragraphs[:100]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(paragraphs))
    words = ["dedup", str(text), "--out"]
    cache = tmp_path / "cache"
    monkeypatch.setenv("PARALAB_CACHE", str(cache))
    command = subprocess.Popen(
        [*PROGRAM, "data", *words, str(tmp_path / "one.txt"), "--workers", "2"], start_new_session=True
    )
    deadline = time.monotonic() + 120
    while sum(file.stat().st_size for file in cache.rglob("*.bin")) < 200_000 and time.monotonic() < deadline:
        assert command.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(command.pid).children(recursive=True)
    os.kill(command.pid, signal.SIGKILL)
    assert len(psutil.wait_procs(workers, timeout=20)[0]) == len(workers) >= 2
    assert command.wait() == -signal.SIGKILL and not (tmp_path / "one.txt").exists()
    assert data.main([*words, str(tmp_path / "one.txt")]) == 0
    assert "going on after" in capsys.readouterr().err
    kept = (tmp_path / "one.txt").read_text().split("\n\n")[:-1]
    assert kept == [*paragraphs[:2000], *paragraphs[2100:]]
