"""How far off predictions are on published measurements, each table left out of its own fit.

    python -m paralab.benchmarks.planner.errors           # with the constants that are shipped, in a second
    python -m paralab.benchmarks.planner.errors --refit   # fits again without each table, in a few minutes
    python -m paralab.benchmarks.planner.errors --write   # the same, and ships the constants of a fit to all tables

What the last one writes, docs/planner.md shows.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from paralab.axes.costs import Plan
from paralab.benchmarks.planner import fit as planner_fit
from paralab.benchmarks.planner import images as planner_images
from paralab.benchmarks.planner.cases import Published, published
from paralab.benchmarks.planner.fit import Target
from paralab.benchmarks.programs import program
from paralab.options.arguments import Parser
from paralab.planning import checked, constants
from paralab.planning.checked import Errors
from paralab.planning.constants import shipped
from paralab.planning.predict import model_flops

SMALLEST_GROUP = 4  # layouts of one model, batch and number of GPUs that can be ranked


def main(argv: Sequence[str]) -> int:
    """Print the tables of errors. Returns: 0."""
    parser = Parser(prog="python -m paralab.benchmarks.planner.errors", description=__doc__)
    parser.add_argument("--refit", action="store_true", help="Fit constants again without each table")
    parser.add_argument("--write", action="store_true", help="Write errors and newly fitted constants as well")
    options = parser.parse_args(list(argv))
    if options.write:
        ship(published())
    errors = {f"{target.name}_shipped": of_shipped(target) for target in planner_fit.targets()}
    if options.refit or options.write:
        errors = {target.name: of_left_out(target) for target in planner_fit.targets()} | errors
    if options.write:
        content: dict[str, object] = {
            kind: {name: _numbers(one) for name, one in tables.items()} for kind, tables in errors.items()
        }
        of_images, range_of_images = planner_images.errors()
        content["images"] = {"resnet": _numbers(of_images)}
        content["step_time_ratio"] = {**ratios(), "images": range_of_images}
        checked.FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for kind, tables in errors.items():
        print(f"\n{kind}\n" + "\n".join(table(tables)))
    return 0


def _numbers(errors: Errors) -> dict[str, float]:
    return {name: value for name, value in asdict(errors).items() if name != "table" and value is not None}


def ship(cases: Published) -> None:
    """Fit all constants to all tables, and write them where predictions read them."""
    content = {name: asdict(constant) for name, constant in constants.described().items()}
    for target in planner_fit.targets():
        for name, value in planner_fit.fit(target, cases.part(target.informative(cases))).items():
            content[name]["value"] = value
    constants.FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    constants.described.cache_clear()
    constants.shipped.cache_clear()


def of_shipped(target: Target) -> dict[str, Errors]:
    """Return the errors by table with the constants that are shipped, which were fitted on all tables."""
    cases = published().part(target.known(published()))
    return by_table(target, cases, target.predict(Plan(cases.case, cases.machine, shipped())))


def of_left_out(target: Target) -> dict[str, Errors]:
    """Return the errors by table with constants that were fitted without that table."""
    cases = published().part(target.informative(published()))
    predicted, known = planner_fit.left_out(target, cases), target.known(cases)
    cases = cases.part(known)
    errors = by_table(target, cases, predicted[known])
    return _with_baseline(errors, target, cases) if target.name == "step_time" else errors


def ratios() -> dict[str, tuple[float, float]]:
    """Return the range of measured over predicted step times, left out of the fit, that `checked.SHARE` of cases had.

    Of each generation of devices that has tables, and of all ("all"); every table weighs alike.
    """
    target = planner_fit.targets()[0]
    cases = published().part(target.informative(published()))
    ratio = target.measured(cases) / planner_fit.left_out(target, cases)
    known = target.known(cases)
    return ranges(ratio[known], cases.table[known], cases.machine.arch[known])


def ranges(ratio: np.ndarray, tables: np.ndarray, arch: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the middle `checked.SHARE` of ratios (cases,) by generation, tables (cases,) weighted alike."""
    found = {}
    for name in ("all", *sorted(set(arch))):
        chosen = (arch == name) | (name == "all")
        sizes = {table: np.sum(tables[chosen] == table) for table in set(tables[chosen])}
        weights = np.array([1 / sizes[table] for table in tables[chosen]])
        tail = (1 - checked.SHARE) / 2
        found[name] = (_quantile(ratio[chosen], weights, tail), _quantile(ratio[chosen], weights, 1 - tail))
    return found


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    upto = np.cumsum(weights[order]) / np.sum(weights)
    return round(float(values[order][np.searchsorted(upto, share)]), 3)


def _with_baseline(errors: Mapping[str, Errors], target: Target, cases: Published) -> dict[str, Errors]:
    """Add the errors of a constant share of the peak, fitted on the other tables."""
    simple = by_table(target, cases, constant_share(cases))
    return {
        name: replace(
            one,
            constant_share_percent=simple[name].mean_percent,
            constant_share_kendall=simple[name].kendall,
        )
        for name, one in errors.items()
    }


def constant_share(cases: Published) -> np.ndarray:
    """Return seconds (cases,) from FLOPs alone: the share of the peak is the mean of all tables but the case's own.

    A full recomputation counts as a second forward pass.
    """
    case, machine = cases.case, cases.machine
    flops = model_flops(case) * np.where(case.recompute == "full", 4 / 3, 1)
    at_peak_s = flops / (case.n_gpus * machine.peak_flops)
    logs = np.log(cases.step_time_s / at_peak_s)
    means = {name: float(np.mean(logs[cases.table == name])) for name in cases.tables()}
    others = {name: np.mean([mean for other, mean in means.items() if other != name]) for name in means}
    return at_peak_s * np.exp([others[name] for name in cases.table])


def by_table(target: Target, cases: Published, predicted: np.ndarray) -> dict[str, Errors]:
    """Return the errors of predictions (cases,) by table."""
    errors = {}
    for name in cases.tables():
        chosen = cases.table == name
        part, values = cases.part(chosen), predicted[chosen]
        percent = 100 * np.abs(values / target.measured(part) - 1)
        one = Errors(name, len(values), *(round(float(f(percent)), 1) for f in (np.mean, np.median, np.max)))
        errors[name] = _with_ranking(one, part, values) if target.name == "step_time" else one
    return errors


def _with_ranking(errors: Errors, cases: Published, predicted: np.ndarray) -> Errors:
    """Add how well layouts of one model on one number of GPUs are ranked, where there are enough of them."""
    groups = defaultdict(list)
    for i, one in enumerate(cases.settled):
        c = one.case
        shape = (c.layers, c.hidden, c.sequence_length, c.global_batch_size, c.n_gpus, c.precision, one.device.gpu)
        groups[shape].append(i)
    ranked = [group for group in groups.values() if len({_layout(cases, i) for i in group}) >= SMALLEST_GROUP]
    if not ranked:
        return errors
    taus = [kendall(predicted[group], cases.step_time_s[group]) for group in ranked]
    regrets = [regret(predicted[group], cases.step_time_s[group]) for group in ranked]
    return replace(
        errors, kendall=round(float(np.mean(taus)), 3), regret_percent=round(100 * float(np.mean(regrets)), 1)
    )


def _layout(cases: Published, i: int) -> tuple[object, ...]:
    case = cases.settled[i].case
    return case.dp, case.tp, case.pp, case.cp, case.ep, case.zero, case.vpp, case.micro_batch_size, case.recompute


def kendall(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return Kendall's tau-b of two orders of the same (cases,): 1 for the same order, -1 for the opposite one."""
    first, second = (np.sign(values[:, None] - values[None, :]) for values in (predicted, measured))
    norm = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / norm) if norm else 0.0


def regret(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return how much slower the case predicted to be fastest was than the fastest of (cases,), as a share."""
    return float(measured[np.argmin(predicted)] / np.min(measured) - 1)


def table(errors: Mapping[str, Errors]) -> list[str]:
    """Return the lines of a Markdown table."""
    simple = any(one.constant_share_percent is not None for one in errors.values())
    lines = [
        f"| table | cases | mean | median | worst | Kendall tau | regret |{' constant share of the peak |' * simple}",
        f"|---|---:|---:|---:|---:|---:|---:|{'---:|' * simple}",
    ]
    for one in errors.values():
        tau = "" if one.kendall is None else f"{one.kendall:.2f}"
        lost = "" if one.regret_percent is None else f"{one.regret_percent:.1f}%"
        numbers = f"{one.mean_percent:.1f}% | {one.median_percent:.1f}% | {one.worst_percent:.0f}%"
        line = f"| {one.table} | {one.cases} | {numbers} | {tau} | {lost} |"
        if simple:
            order = "" if one.constant_share_kendall is None else f", tau {one.constant_share_kendall:.2f}"
            line += f" {one.constant_share_percent:.1f}%{order} |"
        lines.append(line)
    return lines


if __name__ == "__main__":
    program(main, "planner.errors")
