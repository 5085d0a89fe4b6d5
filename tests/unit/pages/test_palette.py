"""Colours that stand together are told apart under red-green blindness too, and stand out on either paper."""

from collections.abc import Mapping
from itertools import combinations, pairwise

import numpy as np
import pytest

from paralab.benchmarks.report import slowest
from paralab.layout.strategies import STRATEGIES
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.pages import palette, style
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.steptime import BOUNDS
from paralab.records.row import COMM_AXES

LEAST_CONTRAST = 3.0  # of graphics: WCAG 2.2, success criterion 1.4.11

# Machado, Oliveira and Fernandes 2009, table of severity 1.0; they act on linear RGB
EYES = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
DARK = {
    "--paper": "#14171b",
    "--panel": "#1b1f25",
    "--ink": "#e7eaee",
    "--quiet": "#a1abb6",
    "--rule": "#363d46",
    "--good": "#4cc9a0",
    "--bad": "#ff9a5c",
}
# sets whose members stand in one drawing, and the least distance of two of their colours: CIEDE2000, for each vision
TOGETHER: Mapping[str, tuple[Mapping[str, palette.Look], float]] = {
    "memory": (palette.MEMORY, 15.0),
    "predicted memory": (palette.PREDICTED_MEMORY, 15.0),
    "parts of a step": (palette.STEP, 10.0),
    "parts of a predicted step": (palette.PREDICTED_STEP, 10.0),
    "passes": (palette.PASSES, 20.0),
    "strategies": (palette.STRATEGIES, 9.0),
    "methods of logistic regression": (dict(list(palette.METHODS.items())[:5]), 15.0),
    "methods of denoising": (dict(list(palette.METHODS.items())[5:]), 15.0),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    """Return linear RGB (3,) of #rrggbb (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB (3,) of linear RGB, for the white of D65."""
    x = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: np.ndarray, other: np.ndarray) -> float:
    """Return the CIEDE2000 difference of two colours in CIELAB (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    c_bar = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(c_bar**7 / (c_bar**7 + 25.0**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    h_bar = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    l_bar, c_bar = (l1 + l2) / 2, (c1 + c2) / 2
    t = (1 - 0.17 * np.cos(np.radians(h_bar - 30)) + 0.24 * np.cos(np.radians(2 * h_bar))
         + 0.32 * np.cos(np.radians(3 * h_bar + 6)) - 0.2 * np.cos(np.radians(4 * h_bar - 63)))  # fmt: skip
    s_l = 1 + 0.015 * (l_bar - 50) ** 2 / np.sqrt(20 + (l_bar - 50) ** 2)
    s_c, s_h = 1 + 0.045 * c_bar, 1 + 0.015 * c_bar * t
    r_c = 2 * np.sqrt(c_bar**7 / (c_bar**7 + 25.0**7))
    r_t = -r_c * np.sin(np.radians(60 * np.exp(-(((h_bar - 275) / 25) ** 2))))
    x, y, z = (l2 - l1) / s_l, (c2 - c1) / s_c, dh / s_h
    return float(np.sqrt(x**2 + y**2 + z**2 + r_t * y * z))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2)."""
    bright, dark = sorted((float(TO_XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_of_colours_is_that_of_the_published_pairs(one, other, known) -> None:
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_colours_of_one_drawing_are_told_apart(name: str, theme: str, eyes: str) -> None:
    looks, least = TOGETHER[name]
    names = dict.fromkeys(look.colour for look in looks.values())
    seen = {colour: lab(EYES[eyes] @ linear(getattr(palette.COLOURS[colour], theme))) for colour in names}
    for one, other in combinations(names, 2):
        assert ciede2000(seen[one], seen[other]) >= least, (one, other)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_shares_a_colour_has_another_hatch_or_marker(name: str) -> None:
    looks = [(look.colour, look.hatch, look.marker) for look in TOGETHER[name][0].values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(("theme", "papers"), [("light", palette.LIGHT), ("dark", DARK)])
def test_colours_stand_out_on_the_paper(theme: str, papers: dict[str, str]) -> None:
    for colour in palette.COLOURS.values():
        for paper in ("--paper", "--panel"):
            assert contrast(getattr(colour, theme), papers[paper]) >= LEAST_CONTRAST, (colour, paper)
    for line in ("--ink", "--quiet"):
        assert contrast(papers[line], papers["--panel"]) >= 4.5, line  # they are of text


def test_papers_are_those_of_the_page() -> None:
    """A picture that stands alone, and the contrast above, count on the values that a page has."""
    light, dark = (style.HERE / "page.css").read_text(encoding="utf-8").split("@media", 1)
    for papers, rules in ((palette.LIGHT, light), (DARK, dark.split("* {")[0])):
        for name, value in papers.items():
            assert f"{name}: {value};" in rules


def test_everything_that_is_drawn_has_a_meaning() -> None:
    assert tuple(palette.MEMORY) == MEMORY_CATEGORIES
    assert tuple(palette.PREDICTED_MEMORY) == CATEGORIES and set(palette.PREDICTED_STEP) == set(BOUNDS)
    assert set(COMM_AXES) <= set(palette.COMMUNICATION)
    assert set(palette.STRATEGIES) == set(STRATEGIES)
    assert len(slowest.LOOKS) == len(palette.STEP)


def test_a_strategy_looks_the_same_whatever_stands_beside_it() -> None:
    few = palette.of_strategies([("zero3", "zero3")])
    many = palette.of_strategies([("ddp", "ddp"), ("old: zero3", "zero3"), ("new: zero3", "zero3"), ("dp2/tp2", None)])
    assert few["zero3"] == many["old: zero3"] == palette.STRATEGIES["zero3"]
    assert many["new: zero3"].colour == "violet" and many["new: zero3"].dashed
    assert many["new: zero3"].marker != many["old: zero3"].marker
    assert many["dp2/tp2"] == palette.UNNAMED


def test_variants_of_the_only_strategy_are_told_apart_by_colour() -> None:
    looks = palette.of_strategies((name, "ddp") for name in ("usual", "plain", "no norm"))
    assert len({look.colour for look in looks.values()}) == 3 and not any(look.dashed for look in looks.values())
    assert set(palette.VARIANTS) <= {look.colour for look in palette.STRATEGIES.values()}, (
        "told apart by the test above"
    )


def test_a_picture_alone_has_the_colours_of_light_paper() -> None:
    assert "var(" not in style.on_paper()
    assert style.of("rect", ["fill", "c-blue"])["fill"] == palette.COLOURS["blue"].light
    assert style.of("line", ["key", "limit", "c-grey"])["stroke"] == palette.LIGHT["--bad"]
    assert style.of("text", ["tick"])["font-size"] == "12px" and style.of("text", ["label"])["font-size"] == "13px"


@pytest.mark.parametrize("eye", EYES)
def test_scales_of_numbers_go_one_way(eye: str) -> None:
    """A larger number is darker on the way from 0, in equal steps of size enough to be seen."""
    light = [lab(EYES[eye] @ linear(palette.shade(palette.MAGNITUDES, n / 12)))[0] for n in range(13)]
    assert all(darker < one - 3 for one, darker in pairwise(light))
    for way in (-1, 1):
        light = [lab(EYES[eye] @ linear(palette.shade(palette.SIGNED, 0.5 + way * n / 12)))[0] for n in range(7)]
        assert all(darker < one - 3 for one, darker in pairwise(light))
    ends = [lab(EYES[eye] @ linear(palette.SIGNED[n])) for n in (1, -2)]
    assert ciede2000(*ends) > 20, "the sign is told by hue"
