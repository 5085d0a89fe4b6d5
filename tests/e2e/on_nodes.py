"""What test_box starts on every node: on_nodes.py FOLDER [all_reduce|raise|lose_launcher]; results go to FOLDER."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

BYTES = 4 << 20


def all_reduce(folder: Path) -> None:
    """Time one all-reduce of BYTES, connections made before."""
    dist.all_reduce(torch.zeros(1))
    buffer = torch.full((BYTES // 4,), dist.get_rank() + 1.0)
    began_s = time.perf_counter()
    dist.all_reduce(buffer)
    seconds = time.perf_counter() - began_s
    found = {"seconds": seconds, "values": buffer.unique().tolist(), "host": socket.gethostname()}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))


def fail(how: str) -> None:
    """Have rank 1 fail at step 3, while the others wait for it in a collective."""
    for step in range(1000):
        if dist.get_rank() == 1 and step == 3:
            if how == "raise":
                raise ValueError("batch 17 is bad")
            os.kill(os.getppid(), signal.SIGKILL)
        dist.all_reduce(torch.zeros(1))
        time.sleep(0.05)


if __name__ == "__main__":
    _, folder, what = [word for word in sys.argv if not word.startswith("--local_rank")]  # deepspeed adds it
    dist.init_process_group("gloo")
    if what == "all_reduce":
        all_reduce(Path(folder))
    else:
        fail(what)
    dist.destroy_process_group()
