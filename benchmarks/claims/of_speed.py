"""Claims about speed, judged by the ratio of step times or of samples a second, with its interval."""

from collections.abc import Sequence
from itertools import pairwise

from paralab.benchmarks.claims.findings import Finding, Measured, Speed, Verdict, markdown, median_of, of_case, speeds
from paralab.benchmarks.claims.series import CLUSTER, Options
from paralab.records.row import RunRecord

NO_RUN = Finding("", "not enough evidence", "No run came to its end.")


def _pair(measured: Measured, series: str, option: str, before: object, after: object) -> Speed | None:
    (found,) = speeds(measured[series], ({option: before}, {option: after}))
    return found


def _steps(rows: Sequence[RunRecord], option: str, values: Sequence[object]) -> list[str]:
    cells = [(value, of_case(rows, {option: value})) for value in values]
    body = [(f"{value}", f"{len(mine)}", f"{1e3 * median_of(mine, 'step_time_p50_s'):.1f}") for value, mine in cells]
    return markdown((f"`{option}`", "runs", "median step, ms"), body)


def _change(measured: Measured, series: str, option: str, values: tuple[object, object], *limits: float) -> Finding:
    speed = _pair(measured, series, option, *values)
    if speed is None:
        return NO_RUN
    return Finding(f"{speed} as fast", speed.judged(*limits), table=_steps(measured[series], option, values))


def channels_last(measured: Measured) -> Finding:
    """Compare ResNet in both memory formats."""
    return _change(measured, "channels-last", "channels_last", (False, True), 1.0, 1.8)


def compiled(measured: Measured) -> Finding:
    """Compare compiled blocks with those that are not; what compiling took is said and is no part of a step."""
    found = _change(measured, "compile", "compile", ("none", "default"), 1.3, 3.0)
    seconds = [row.compile_s for row in of_case(measured["compile"], {"compile": "default"}) if row.compile_s]
    once = f"The first run spent {seconds[0]:.0f} s in compiling, which is not part of a step." if seconds else ""
    return Finding(found.figure, found.verdict, once, found.table)


def pinned(measured: Measured) -> Finding:
    """Compare copies from pinned memory with those from pageable memory."""
    return _change(measured, "pinned", "pin_memory", (False, True), 1.0)


def casting(measured: Measured) -> Finding:
    """Compare batches that are sent as bytes with those that are sent as floats."""
    found = _change(measured, "casting", "cast_on_device", (False, True), 1.0)
    on_cpu = all(row.device == "cpu" for row in measured["casting"])
    why = (
        "Without a GPU only what is left of it is measured: a data-loader worker sends bytes to the process that "
        "trains, which is host and device at once, or floats, four times as large. Copies to a GPU are not part of it."
    )
    return Finding(found.figure, found.verdict, why if on_cpu else "", found.table)


def workers(measured: Measured) -> Finding:
    """Compare numbers of data-loader workers with none, and with as many as cores."""
    rows = measured["workers"]
    cores = max(1, int(rows[0].cores_allowed or 1))
    counts = sorted({row.loader_workers for row in rows if row.loader_workers is not None})
    beside_none = speeds(rows, [{"loader_workers": count} for count in counts])
    others = [count for count in counts if count != cores]
    beside_cores = speeds(rows, [{"loader_workers": count} for count in (cores, *others)])
    body = [
        (f"{count}", f"{1e3 * median_of(of_case(rows, {'loader_workers': count}), 'step_time_p50_s'):.1f}", shown)
        for count, shown in zip(counts, ["1", *map(str, beside_none)], strict=True)
    ]
    table = markdown(("workers", "median step, ms", "times as fast as with none"), body)
    known = dict(zip(counts[1:], beside_none, strict=True))
    own, better = known.get(cores), [n for n, speed in zip(others, beside_cores, strict=True) if _is_faster(speed)]
    if own is None:
        return NO_RUN
    figure = f"with {cores} workers on {cores} cores {own} as fast as with none"
    slower = own.high is not None and own.high < 1
    if better or slower:
        why = f"Faster than {cores} workers: {', '.join(map(str, better))}." if better else "None is faster than they."
        return Finding(figure, "does not hold here", why, table)
    return Finding(figure, own.judged(1.0), "", table)


def _is_faster(speed: Speed | None) -> bool:
    return speed is not None and speed.low is not None and speed.low > 1


def batches(measured: Measured) -> Finding:
    """Compare samples a second of each batch with those of the next smaller one."""
    rows = measured["batches"]
    sizes = sorted({row.global_batch_size for row in rows if row.global_batch_size})
    steps = [
        speeds(rows, ({"global_batch_size": small}, {"global_batch_size": large}), "samples_per_s")[0]
        for small, large in pairwise(sizes)
    ]
    body = []
    for size, speed in zip(sizes, [None, *steps], strict=True):
        mine = of_case(rows, {"global_batch_size": size})
        rate, peak = median_of(mine, "samples_per_s"), median_of(mine, "memory_tensors_peak_bytes")
        body.append((f"{size}", f"{rate:.0f}", "" if speed is None else str(speed), f"{peak / 2**20:.1f}"))
    table = markdown(("batch", "samples/s", "beside the batch before", "peak of the tensors, MiB"), body)
    figure = ", ".join(
        f"{large} beside {small}: {speed}" for (small, large), speed in zip(pairwise(sizes), steps, strict=True)
    )
    return Finding(f"samples a second, batch {figure}", _all(list(map(_more, steps))), "", table)


def _more(speed: Speed | None) -> Verdict:
    return "not enough evidence" if speed is None else speed.judged(1.0)


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    """Return what several parts of a claim say of the whole of it."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "holds in part" if "holds" in verdicts else "not enough evidence"


def nodes(measured: Measured) -> Finding:
    """Compare the largest simulated cluster with one node, on each link."""
    rows = measured["nodes"]
    links = sorted({row.link_mbit_per_s for row in rows if row.link_mbit_per_s is not None}, reverse=True)
    most, body, said, verdicts = max(CLUSTER.nodes), [], [], []
    for link in links:
        cases: list[Options] = [{"nodes": count, "bandwidth": link} for count in (1, most)]
        (speed,) = speeds(rows, cases)
        verdicts.append(_more(speed))
        said.append(f"at {link:g} Mbit/s {speed}")
        for case in cases:
            mine = of_case(rows, case)
            if mine:
                waits = median_of(mine, "exposed_comm_share")
                step_ms, busy = 1e3 * median_of(mine, "step_time_p50_s"), median_of(mine, "cpu_utilisation_mean_share")
                body.append((f"{link:g}", f"{case['nodes']}", f"{step_ms:.0f}", f"{waits:.0%}", f"{busy:.0%}"))
    table = markdown(("link, Mbit/s", "nodes", "median step, ms", "waiting for others", "CPU"), body)
    where = [f"{link:g} Mbit/s" for link, verdict in zip(links, verdicts, strict=True) if verdict == "holds"]
    why = f"It holds at {', '.join(where)}. " if 0 < len(where) < len(links) else ""
    cluster = (
        f"Nodes are simulated on this machine, each with {CLUSTER.cores_per_node:g} cores and a link of its own "
        "([nodes.md](nodes.md)); [scaling.md](scaling.md) says at which link more nodes stop helping."
    )
    return Finding(f"{most} nodes beside one: {', '.join(said)} as fast", _all(verdicts), why + cluster, table)
