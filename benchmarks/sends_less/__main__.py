"""Measure what data parallelism that sends less costs in convergence, and over which links it pays.

    python -m paralab.benchmarks.sends_less --bandwidths 10mbit,100mbit --seeds 3

Every method (plain ddp, compressed gradients, local SGD, DiLoCo) trains the same model from the same seeds in two local
processes, and its validation loss is noted by samples. On a simulated cluster of two nodes (`paralab cluster`) the
methods take turns to run a few steps over each link, and their times are noted. Printed are the gap in validation loss
to ddp after the same samples, and over each link after the same wall time; the picture has the curves. What is in the
folder already is not measured again, so a measurement that was interrupted goes on.
"""

import shlex
import sys
from dataclasses import replace

from paralab.benchmarks.programs import program
from paralab.benchmarks.sends_less.gap import Curves, Loss, Timing, drawing, read, table
from paralab.benchmarks.sends_less.methods import NODES, SendsLessConfig, check
from paralab.console.clock import Moment
from paralab.console.outputs import write_whole
from paralab.console.phases import Phases
from paralab.errors import RankError
from paralab.options.flags import flags_of
from paralab.options.flags import resolve as read_config
from paralab.processes.with_parent import run_whole


def main(argv: list[str]) -> int:
    """Measure what is missing, print the table and draw the picture. Returns: 0. Raises: as `check` and the runs do."""
    config = read_config(
        argv, config=SendsLessConfig, prog="python -m paralab.benchmarks.sends_less", description=__doc__
    )
    links = config.bandwidths or ["10mbit", "100mbit"]
    if not config.read_only:
        check(config, links)
        config.folder.mkdir(parents=True, exist_ok=True)
        _train(config)
        for link in links:
            _time(config, link)
    curves = Curves(read(config.folder / "losses.csv", Loss), read(config.folder / "times.csv", Timing))
    print(table(curves))
    write_whole(config.folder / "gap.svg", drawing(curves).encode())
    print(f"\nrows and picture in {config.folder}")
    return 0


def _train(config: SendsLessConfig) -> None:
    """Train each method from each seed that is missing, in local processes."""
    from paralab.running import task

    done = {(row.method, row.seed) for row in read(config.folder / "losses.csv", Loss) if row.step == config.steps}
    missing = [(m, s) for s in range(config.seeds) for m in config.chosen if (m, s) not in done]
    if missing:
        task.start("paralab.benchmarks.sends_less.worker:train", config, missing, nproc=NODES, config=config)


def _time(config: SendsLessConfig, link: str) -> None:
    """Time all methods over a link, on a simulated cluster. Raises: RankError where that fails."""
    there = {(row.method, row.round) for row in read(config.folder / "times.csv", Timing) if row.link == link}
    if {(method, turn) for method in config.chosen for turn in range(config.rounds)} <= there:
        return
    words = ["cluster", "--nodes", str(NODES), "--bandwidth", link, "--", sys.executable, "-m", "torch.distributed.run"]
    words += ["-m", "paralab.benchmarks.sends_less.worker", *flags_of(replace(config, bandwidths=[link]))]
    with Phases(Moment.now(), shown=True) as phases:
        phases.begin(f"timing {len(config.chosen)} methods over {link}")
        done = run_whole([sys.executable, "-m", "paralab.cli", *words])
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line.lower()), done.stderr[-300:])
        raise RankError(f"{shlex.join(['paralab', *words])} ended with status {done.returncode}: {said}")


if __name__ == "__main__":
    program(main, "sends_less")
