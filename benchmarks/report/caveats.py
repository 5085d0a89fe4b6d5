"""What a reader of a ratio must know: parity, failures, other work, another environment, how runs were made."""

from collections.abc import Sequence

from paralab.benchmarks.report import to_loss
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.variants import Variant, differences
from paralab.benchmarks.report.work import ENVIRONMENT


def notes_on(base: Variant, other: Variant) -> list[str]:
    """Say what a reader of the ratio must know: parity, other work, failures, environment, how runs were made."""
    notes = [note for variant in (base, other) for note in parity_failures(variant)]
    notes += [f"not the same work: {difference}" for difference in differences(base, other)]
    notes += [note for variant in (base, other) for note in failures(variant)]
    notes += [note for variant in (base, other) for note in to_loss.said(variant.label, variant.good)]
    notes += [str(difference) for difference in differences(base, other, ENVIRONMENT)]
    for variant in (base, other):
        good = [run for run in variant.runs if run.status == "ok"]
        for column, wrong, said in (
            ("steady", False, "never reached a steady step time"),
            ("throttled", True, "were throttled"),
        ):
            if count := sum(getattr(run, column) is wrong for run in good):
                notes.append(f"{variant.label}: {count} of {len(good)} runs {said}")
    return notes


def parity_failures(variant: Variant) -> list[str]:
    """Say by how much a variant computes something else than one process, where it does."""
    wrong = [run for run in variant.runs if run.parity is False]
    if not wrong:
        return []
    columns = (("loss", "loss_difference_max"), ("gradient norm", "grad_norm_difference_max"),
               ("parameters", "parameter_difference_max"))  # fmt: skip
    known = [(name, [cell for run in wrong if (cell := getattr(run, column)) is not None]) for name, column in columns]
    off = ", ".join(f"{name} off by {max(cells):.2g}" for name, cells in known if cells)
    said = f"{variant.label}: {len(wrong)} of {len(variant.runs)} runs do not compute what one process computes"
    return [f"{said} ({off})" if off else said]


def failures(variant: Variant) -> list[str]:
    """Say for each way in which runs of a variant failed how many did, where and why."""
    said: dict[str, int] = {}
    for run in variant.failed:
        place = (("rank", run.failed_rank), ("step", run.failed_step))
        at = ", ".join(f"{name} {number}" for name, number in place if number is not None)
        text = " ".join(filter(None, (run.status, f"at {at}" if at else "", f"({run.reason})" if run.reason else "")))
        said[text] = said.get(text, 0) + 1
    return [f"{variant.label}: {count} of {len(variant.runs)} runs failed: {text}" for text, count in said.items()]


def grouped(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the notes on some comparisons, each once, with the variants that it is about if it is not about all."""
    about: dict[tuple[str, bool], list[str]] = {}
    for comparison in comparisons:
        for note in comparison.notes:
            label = next((name for name in (comparison.base, comparison.other) if note.startswith(f"{name}: ")), None)
            said = note if label is None else note.removeprefix(f"{label}: ")
            names = about.setdefault((said, label is None), [])
            name = comparison.other if label is None else label
            names += [] if name in names else [name]
    return [
        said if of_both and len(names) == len(comparisons) else f"{_each(names)}: {said}"
        for (said, of_both), names in about.items()
    ]


def _each(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: commas, and `and` before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
