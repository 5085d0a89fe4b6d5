"""What a colour means: one for each category of memory, each part of a step and each strategy, whatever else is drawn.

Each has a value for light paper and one for dark, both at least 3:1 against it. Those that stand together are told
apart under deuteranopia and protanopia too: `tests/unit/pages/test_palette.py` measures them. Beside colour there is a
hatch or a marker.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# the paper and lines of a page in light, for pictures that stand alone
LIGHT = {
    "--paper": "#ffffff",
    "--panel": "#f6f7f9",
    "--ink": "#1b1f24",
    "--quiet": "#59636e",
    "--rule": "#d5dae0",
    "--good": "#00704f",
    "--bad": "#b03a00",
}


@dataclass(frozen=True)
class Colour:
    """A colour on light and on dark paper, as #rrggbb."""

    light: str
    dark: str


# Found by annealing: the least CIEDE2000 distance under normal vision and Machado's two matrices, from usual hues.
COLOURS = {
    "blue": Colour("#165877", "#487b9c"),
    "sky": Colour("#1686f9", "#90adbd"),
    "teal": Colour("#039593", "#00ffc5"),
    "green": Colour("#3a6f43", "#6fc370"),
    "olive": Colour("#8a8562", "#fdff24"),
    "orange": Colour("#ef4000", "#eb8105"),
    "red": Colour("#cc0022", "#d34561"),
    "pink": Colour("#f01dd2", "#ffc9fd"),
    "violet": Colour("#2900f8", "#be9fff"),
    "brown": Colour("#4e2100", "#af6300"),
    "navy": Colour("#212b78", "#716fff"),
    "grey": Colour("#6b625f", "#87968f"),
    "black": Colour("#25292b", "#f5faff"),
}
# numbers from zero up, and from below zero through zero: stops at equal distances, on either paper
MAGNITUDES = ("#f3ecca", "#8cc3a0", "#2f9292", "#165877", "#1c2440")
SIGNED = ("#123f56", "#165877", "#8fb4c6", "#ffffff", "#f2a67f", "#c84400", "#8a2c00")
MARKERS = ("circle", "square", "diamond", "up", "down", "cross")


@dataclass(frozen=True)
class Look:
    """How something is drawn: a name of `COLOURS`, / \\ x | or - for hatched areas, one of `MARKERS` for points.

    dashed: of a line, to tell variants of one strategy apart; their markers are hollow.
    """

    colour: str
    hatch: str = ""
    marker: str = "circle"
    dashed: bool = False

    @property
    def cls(self) -> str:
        """The classes of the style sheet."""
        return f"c-{self.colour}{' dashed' if self.dashed else ''}"


MEMORY = {
    "parameters": Look("blue"),
    "gradients": Look("orange", "/"),
    "optimizer": Look("teal", "\\"),
    "activations": Look("violet"),
    "buffers": Look("olive", "x"),
    "other": Look("grey", "-"),
}
# of a prediction, which knows fewer: what it adds up has the colour of its largest part
PREDICTED_MEMORY = {
    "states": MEMORY["parameters"],
    "activations": MEMORY["activations"],
    "at work": MEMORY["buffers"],
    "overhead": MEMORY["other"],
}
# exposed communication, by mesh axis: those of the data axes share a colour, and differ in the hatch
COMMUNICATION = {
    "dp": Look("orange"),
    "dp_shard": Look("orange", "/"),
    "dp_replicate": Look("orange", "\\"),
    "dp_cp": Look("orange", "x"),
    "tp": Look("pink", "|"),
    "pp": Look("teal", "/"),
    "cp": Look("olive", "-"),
    "ep": Look("violet", "\\"),
    "edp": Look("violet", "x"),
    "world": Look("navy"),
    "other": Look("navy", "/"),
}
STEP = {
    "compute": Look("blue"),
    "data": Look("brown", "/"),
    "host": Look("red", "x"),
    "bubble": Look("grey", "-"),
    "comm": Look("sky", "\\"),  # over no axis that is known, or over all of them
    **{f"comm_{axis}": look for axis, look in COMMUNICATION.items()},
}
# of a prediction: `memory` is time in which bytes move within a device
PREDICTED_STEP = {
    "host": STEP["host"],
    "compute": STEP["compute"],
    "memory": Look("navy", "/"),
    "link": STEP["comm"],
    "bubble": STEP["bubble"],
}
PASSES = {"F": Look("blue"), "B": Look("orange", "/"), "W": Look("teal", "x")}
STRATEGIES = {
    "single": Look("black"),
    "ddp": Look("blue", marker="circle"),
    "model": Look("brown", marker="square"),
    "pipeline": Look("teal", marker="square"),
    "zero1": Look("sky", marker="diamond"),
    "zero2": Look("navy", marker="diamond"),
    "zero3": Look("violet", marker="diamond"),
    "hsdp": Look("olive", marker="up"),
    "tensor": Look("orange", marker="up"),
    "context": Look("pink", marker="down"),
    "expert": Look("green", marker="down"),
    "2d": Look("red", marker="cross"),
    "3d": Look("grey", marker="cross"),
}
# of convex functions: those of logistic regression, then those of denoising, which stand apart
METHODS = {
    "gd": Look("blue"),
    "sgd": Look("grey"),
    "minibatch": Look("orange"),
    "svrg": Look("teal"),
    "newton": Look("violet"),
    "subgradient": Look("orange"),
    "ista": Look("blue"),
    "fista": Look("violet"),
}
VARIANTS = ("blue", "orange", "teal", "violet", "pink", "olive", "brown", "green")  # of one strategy, where it is alone
UNNAMED = Look("grey", marker="circle")  # a layout that no strategy has


def of_strategies(labels: Iterable[tuple[str, str | None]]) -> dict[str, Look]:
    """Return how each label is drawn. labels: (label, its strategy).

    A strategy has its colour wherever others stand beside it; a second variant of it has another marker, dashes and a
    label. Where all are of one strategy, it is the variants that colours tell apart.
    """
    of = dict(labels)
    if len(of) > 1 and len(set(of.values())) == 1:
        looks = (Look(VARIANTS[n % len(VARIANTS)], marker=MARKERS[n % len(MARKERS)]) for n in range(len(of)))
        return dict(zip(of, looks, strict=True))
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for label, strategy in of.items():
        look = STRATEGIES.get(strategy or "", UNNAMED)
        again = seen.get(look.colour, 0)
        seen[look.colour] = again + 1
        place = MARKERS.index(look.marker) + again
        found[label] = replace(look, marker=MARKERS[place % len(MARKERS)], dashed=again > 0)
    return found


def shade(stops: Sequence[str], share: float) -> str:
    """Return the colour between stops that lies at a share (0 to 1) of the way from the first to the last."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    ends = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops[first : first + 2]]
    return "#" + "".join(f"{round(a + (place - first) * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def variables() -> str:
    """Return the rules of a style sheet that give each colour its value, on light and on dark paper."""
    light = " ".join(f"--c-{name}: {colour.light};" for name, colour in COLOURS.items())
    dark = " ".join(f"--c-{name}: {colour.dark};" for name, colour in COLOURS.items())
    classes = " ".join(f".c-{name} {{ --c: var(--c-{name}); }}" for name in COLOURS)
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{classes}\n"
