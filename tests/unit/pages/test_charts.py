"""What charts draw: from zero on, on one scale, nothing beyond its place, and nothing joined that was not run."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralab.pages import charts, marks, scatter
from paralab.pages.charts import Bar, Row
from paralab.pages.gantt import Span, gantt
from paralab.pages.lines import Series, lines
from paralab.pages.palette import PASSES, STRATEGIES, Look
from paralab.pages.scatter import Spot

LOOKS = {"a": Look("blue"), "b": Look("orange", "/")}
Numbers = st.floats(0, 400)


def plain(value: float) -> str:
    return f"{value:g}"


def elements(drawing: str, tag: str, cls: str = "") -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(drawing).iter(tag) if cls in e.attrib.get("class", "").split()]


def across(drawing: str) -> marks.Axis:
    """Return the horizontal axis of a drawing, read from its lines and numbers."""
    at = [float(e.attrib["x1"]) for e in ElementTree.fromstring(drawing).iter("line")
          if e.attrib["class"] in ("grid", "zero") and e.attrib["x1"] == e.attrib["x2"]]  # fmt: skip
    told = [float((e.text or "").replace(",", "")) for e in elements(drawing, "text", "tick")]
    return marks.Axis(min(told), max(told), min(at), max(at))


def test_bars_begin_at_zero_and_their_parts_follow_each_other() -> None:
    drawing = charts.bars([Bar("x", {"a": 600.0, "b": 200.0})], looks=LOOKS, title="", unit=plain)
    axis = across(drawing)
    first, second, *_ = elements(drawing, "rect", "fill")  # others are of the legend
    assert float(first.attrib["x"]) == axis(0.0) and axis.low == 0
    assert float(second.attrib["x"]) == pytest.approx(axis(600.0), abs=0.02)
    assert float(second.attrib["x"]) + float(second.attrib["width"]) == pytest.approx(axis(800.0), abs=0.02)


@pytest.mark.parametrize("draw", ["dots", "scatter"])
def test_times_and_rates_begin_at_zero(draw: str) -> None:
    if draw == "dots":
        drawing = charts.dots([Row("x", [600.0, 1300.0], 950.0)], title="", unit=plain)
    else:
        spots = [Spot("x", 600.0, 900.0, STRATEGIES["ddp"]), Spot("y", 650.0, 950.0, STRATEGIES["zero3"])]
        drawing = scatter.scatter(spots, title="", units=(plain, plain), names=("", ""))
    assert [e for e in elements(drawing, "text", "tick") if e.text == "0"]


def test_charts_that_reach_as_far_have_one_scale() -> None:
    short, long = ([Bar("x", {"a": size})] for size in (10.0, 95.0))
    alone, together, other = (
        across(charts.bars(rows, looks=LOOKS, title="", unit=plain, reach=reach))
        for rows, reach in ((short, []), (short, [95.0]), (long, [95.0]))
    )
    assert together == other != alone


def test_the_look_of_a_part_does_not_depend_on_what_stands_beside_it() -> None:
    only_b = charts.bars([Bar("x", {"b": 1.0})], looks=LOOKS, title="", unit=plain)
    assert "c-orange" in only_b and "c-blue" not in only_b and elements(only_b, "path", "hatch")


@given(Numbers, Numbers, Numbers, st.floats(0, 60), st.sampled_from(["/", "\\", "x", "|", "-"]))
def test_a_hatch_stays_in_its_rectangle(x: float, y: float, width: float, height: float, kind: str) -> None:
    for a, b, c, d in re.findall(r"M(\S+) (\S+?)L(\S+) (\S+)", marks.hatch(x, y, width, height, kind)):
        for at, low, size in ((a, x, width), (c, x, width), (b, y, height), (d, y, height)):
            assert low - 0.11 <= float(at) <= low + size + 0.11  # four digits are written


def test_a_hatch_of_an_area_of_some_size_is_seen() -> None:
    for kind in ("/", "\\", "x", "|", "-"):
        assert marks.hatch(3.0, 7.0, 20.0, 13.0, kind).count("M") >= 2, kind
    assert marks.hatch(0.0, 0.0, float("inf"), 13.0, "/") == "" == marks.hatch(0.0, 0.0, float("nan"), 13.0, "/")


@given(st.lists(st.floats(-50, 300), min_size=1, max_size=12))
def test_names_keep_apart_and_in_order(wanted: list[float]) -> None:
    found = marks.apart(wanted, 13, 14, 200)
    placed = sorted(zip(wanted, found, strict=True))
    assert all(b - a >= 13 - 0.02 for a, b in pairwise(sorted(found)))
    assert all(one[1] <= other[1] for one, other in pairwise(placed) if one[0] < other[0])
    assert max(found) <= 200.01


def test_names_of_points_cover_no_other_name_and_no_point() -> None:
    places = [(250, 3720), (366, 2163), (179, 782), (209, 2598), (189, 334), (186, 873), (207, 651), (158, 682)]
    names = ["ddp", "model", "pipeline", "zero1", "zero2", "zero3", "hsdp", "tensor"]
    spots = [Spot(name, *place) for name, place in zip(names, places, strict=True)]
    spots[0] = replace(spots[0], y_interval=(3000.0, 4400.0))
    drawing = scatter.scatter(spots, title="", units=(plain, plain), names=("", ""))
    boxes = [
        scatter.Box(x - wide if end else x, y - 9, x if end else x + wide, y + 2)
        for e in elements(drawing, "text", "small")
        for x, y, end in [(float(e.attrib["x"]), float(e.attrib["y"]), e.attrib["text-anchor"] == "end")]
        for wide in [6 * len(e.text or "")]
    ]
    points = [scatter.Box(x - 4, y - 4, x + 4, y + 4) for x, y in _marks_of(drawing)]
    assert len(boxes) == len(points) == len(spots)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].covers(pair[1])]
    (x1, y1, y2) = (float(elements(drawing, "line", "whisker")[0].attrib[key]) for key in ("x1", "y1", "y2"))
    points.append(scatter.Box(x1, min(y1, y2), x1, max(y1, y2)))
    assert not [(box, point) for box in boxes for point in points if box.covers(point)]


def _marks_of(drawing: str) -> list[tuple[float, float]]:
    return [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in elements(drawing, "circle", "mark")]


def test_what_a_chart_shows_is_said_to_those_who_do_not_see_it() -> None:
    rows = [Row(f"way {n}", [1.0], 1.0 + n) for n in range(30)]
    said = _said(charts.dots(rows, title="Step <time>", unit=plain))
    assert said.startswith("way 0: 1; way 1: 2; ") and said.endswith("and 6 more")
    steps = [charts.Step("a", 2.0, interval=(1.0, 3.0)), charts.Step("b", -1.0)]
    drawing = charts.waterfall(("x", 4.0), ("y", 5.0), steps, title="", unit=plain)
    assert _said(drawing) == "x: 4; a: +2; b: -1; y: 5"
    (thin,) = elements(drawing, "line", "median")
    axis = across(drawing)
    assert [float(thin.attrib[x]) for x in ("x1", "x2")] == pytest.approx([axis(5.0), axis(7.0)], abs=0.02)


def _said(drawing: str) -> str:
    (said,) = ElementTree.fromstring(drawing).iter("desc")
    return said.text or ""


def test_a_unit_that_ticks_share_stands_once() -> None:
    drawing = charts.bars([Bar("x", {"a": 600.0})], looks=LOOKS, title="", unit=lambda ms: f"{ms:g} ms" if ms else "0")
    told = [e.text for e in elements(drawing, "text", "tick")]
    assert sorted(told, key=str) == ["0", "200", "400", "600 ms"]


def test_scaling_is_dotted_where_a_number_was_not_run() -> None:
    two = Series("all", [(1, 1.0), (2, 0.9), (4, 0.8)], look=Look("blue"))
    gap = Series("gap", [(1, 1.0), (4, 0.7)], look=Look("red"))
    drawing = lines([two, gap], title="", unit=plain, along="processes", zero=True, every=True, doubling=True)
    (whole,) = elements(drawing, "polyline", "line")
    assert "c-blue" in whole.attrib["class"] and len(whole.attrib["points"].split()) == 3
    (dotted,) = elements(drawing, "line", "gap")
    assert "c-red" in dotted.attrib["class"]
    alone = lines([gap], title="", unit=plain, along="processes", every=True, doubling=True)
    assert not elements(alone, "polyline", "line") and elements(alone, "line", "gap")  # 2 was not run by anyone


def test_lines_have_their_names_at_their_ends_and_long_ones_below() -> None:
    short = [Series(name, [(0, 1.0), (1, 1.0)], look=Look("blue")) for name in ("ddp", "zero3")]
    named = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in elements(
        lines(short, title="", unit=plain, along="step"), "text", "small")]  # fmt: skip
    assert len(named) == 2 and abs(named[0][1] - named[1][1]) >= 12.98 and min(x for x, _ in named) > 300
    long = [Series("a method with a name of many words", [(0, 1.0), (1, 2.0)], look=Look("blue"))]
    drawing = lines(long, title="", unit=plain, along="step")
    assert not elements(drawing, "text", "small") and "a method with a name of many words" in drawing


def spans() -> list[Span]:
    return [
        Span(f"rank {rank}", kind, "0", start + rank / 4, start + 0.2 + rank / 4)
        for rank in range(3)
        for kind, start in (("F", 0.0), ("B", 1.0), ("W", 1.5))
    ]


def test_a_timeline_shows_every_rank_its_passes_and_when_it_is_idle() -> None:
    looks = {kind: (name, PASSES[kind]) for kind, name in (("F", "forward"), ("B", "backward"), ("W", "weights"))}
    drawing = gantt(spans(), title="", unit=lambda s: f"{1e3 * s:g} ms", looks=looks)
    assert [e.text for e in elements(drawing, "text", "label")][:3] == ["rank 0", "rank 1", "rank 2"]
    assert len(elements(drawing, "rect", "span")) == 9
    idle = [e for e in elements(drawing, "rect", "idle") if e.find("title") is not None]
    assert len(idle) == 3 and len({e.attrib["width"] for e in idle}) == 1
    first = elements(drawing, "rect", "span")[0]
    assert first.attrib["x"] == idle[0].attrib["x"]
    assert {look.hatch for _, look in looks.values()} == {"", "/", "x"}
    assert ">500<" in drawing and "idle" in [e.text for e in elements(drawing, "text", "label")]
