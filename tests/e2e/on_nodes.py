"""What test_simulated_cluster starts on every node: on_nodes.py FOLDER WHAT; results go to FOLDER.

WHAT: all_reduce, raise, lose_launcher, cut or cut_3_s.
"""

import copy
import json
import os
import signal
import socket
import subprocess
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


def train_cut_off(folder: Path) -> None:
    """Train as `paralab train` does; at step 5 node 1 loses its link for ever."""
    from paralab.commands.train import main
    from paralab.data.dataset import Batch
    from paralab.engines.engine import StepResult
    from paralab.engines.native import NativeEngine

    take = NativeEngine.step

    def step(engine: NativeEngine, batch: Batch) -> StepResult:
        if engine.steps_done == 5 and os.environ["RANK"] == "1":
            subprocess.run("ip link set eth0 down", shell=True, check=True)
        return take(engine, batch)

    NativeEngine.step = step  # type: ignore[method-assign, assignment]
    words = ["--model", "gpt2", "--size", "tiny", "--strategy", "ddp", "--global-batch-size", "2", "--save-every", "2"]
    sys.exit(main([*words, "--eval-samples", "2", "--steps", "100000", "--out", str(folder)]))


def train(folder: Path) -> None:
    """Train one layer on all ranks and, without them, on all their samples; at step 5 node 1 loses its link for 3 s."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(10, dist.get_world_size(), 4, generator=generator)
    model = torch.nn.Linear(4, 1)
    torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)
    alone = copy.deepcopy(model)
    together = torch.nn.parallel.DistributedDataParallel(model)
    for step, batch in enumerate(samples):
        if step == 5 and dist.get_rank() == 1:
            away = "ip link set eth0 down && sleep 3 && ip link set eth0 up"
            subprocess.run(f"({away}) & sleep 0.5", shell=True, check=True)
        for net, part in ((together, batch[dist.get_rank()]), (alone, batch)):
            net.zero_grad()
            net(part).square().mean().backward()
        with torch.no_grad():
            for net in (model, alone):
                for p in net.parameters():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=0.1)
    difference = max((p - q).abs().max().item() for p, q in zip(model.parameters(), alone.parameters(), strict=True))
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps({"difference": difference}))


if __name__ == "__main__":
    _, folder, what, *_marker = [word for word in sys.argv if not word.startswith("--local_rank")]  # deepspeed adds it
    if what == "cut":
        train_cut_off(Path(folder))
    dist.init_process_group("gloo")
    if what == "all_reduce":
        all_reduce(Path(folder))
    elif what == "cut_3_s":
        train(Path(folder))
    else:
        fail(what)
    dist.destroy_process_group()
    os._exit(0)  # without what threads of torch do when Python ends, which may abort it
