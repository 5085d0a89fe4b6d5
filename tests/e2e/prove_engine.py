"""A script for launchers: train a case with an engine, compare it with one process, print what came of it.

python tests/e2e/prove_engine.py STRATEGY ENGINE [--ds-config FILE] [--precision P] [--local_rank R]
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from paralab.options.config import RunConfig  # noqa: E402
from paralab.planning.resolve import resolve  # noqa: E402
from paralab.processes import cluster  # noqa: E402
from paralab.processes.mesh import make_mesh  # noqa: E402
from paralab.processes.rank import Rank  # noqa: E402
from tests.dist.engine_cases import prove_engine  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("strategy")
    parser.add_argument("engine")
    parser.add_argument("--ds-config")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--local_rank")
    arguments = parser.parse_args()
    rank = Rank.from_env()
    run = RunConfig(
        size="tiny",
        strategy=arguments.strategy,
        nproc=rank.world_size,
        engine=arguments.engine,
        ds_config=arguments.ds_config,
        precision=arguments.precision,
        eps=1e-5,
    )
    work = resolve(run)
    engine = work.run.engine
    cluster.join(rank, threads=1)
    built, result = prove_engine(work, make_mesh(work.layout, rank.device), engine, work.run.ds_config)
    if rank.is_main:
        report = {"launcher": rank.launcher, "world_size": rank.world_size, "engine": engine, "built": built}
        print(json.dumps(report | {"parity": str(result)}), flush=True)
    cluster.leave()


if __name__ == "__main__":
    main()
