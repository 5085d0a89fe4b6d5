"""Is noise multiplicative or additive? How the spread of a case grows with its step time, in each sweep of some files.

    python -m paralab.benchmarks.report.noise benchmarks/results/*.csv

A power near 1 is noise that is a share of the step time, a power near 0 noise of so many seconds.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from paralab.benchmarks.report import work
from paralab.benchmarks.report.work import METHOD, WORK
from paralab.console.quantities import interval_text
from paralab.records.reading import read
from paralab.records.row import RunRecord

LEAST_RUNS, LEAST_CASES = 4, 8


def main(argv: Sequence[str]) -> int:
    """Print a line for each sweep that has enough cases. Returns: 0."""
    for path in argv:
        for group, medians_s, power in powers(read(path)):
            cases = f"{len(medians_s)} cases of {interval_text((min(medians_s), max(medians_s)))}"
            print(f"{Path(path).name:<14}{group:<18}{cases:<30}spread grows to the power {power:.2f}")
    return 0


def powers(rows: Sequence[RunRecord]) -> Iterator[tuple[str, list[float], float]]:
    """Yield each sweep: its name, the median step time of each case, and the power of the spread in it."""
    for group in dict.fromkeys(row.group for row in rows if row.group):
        mine = [row for row in rows if row.group == group and row.status == "ok" and row.step_time_p50_s]
        cases = [runs for runs in work.group(mine, (*WORK, *METHOD)).values() if len(runs) >= LEAST_RUNS]
        if len(cases) >= LEAST_CASES:
            times = [np.asarray([run.step_time_p50_s for run in runs], dtype=float) for runs in cases]
            medians_s = [float(np.median(each)) for each in times]
            spreads = np.log([each.std(ddof=1) for each in times])
            yield group, medians_s, float(np.polyfit(np.log(medians_s), spreads, 1)[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
