"""Where charts draw what: each mark at its number, each row at its place, and nothing beyond the drawing."""

import numpy as np
import pytest

from paralab.pages import charts, marks, scatter
from paralab.pages.charts import Bar, Row, Step
from paralab.pages.gantt import Span, gantt
from paralab.pages.heatmap import heatmap
from paralab.pages.limits import Limit
from paralab.pages.lines import Series, lines, merged, same_within, thinned
from paralab.pages.palette import MAGNITUDES, PASSES, Look
from paralab.pages.scatter import Spot
from paralab.pages.table import UNKNOWN, Cell, Column, table
from paralab.pages.tiles import cloud, coloured
from tests.unit.pages.test_charts import LOOKS, _said, across, elements, plain

BLUE = Look("blue")


def near(*numbers: float) -> object:
    return pytest.approx(numbers, abs=0.03)


def spans_of(drawing: str, tag: str, cls: str) -> list[tuple[float, float]]:
    """Return where rectangles or lines of a class begin and end from left to right."""
    found = [{k: float(v) for k, v in e.attrib.items() if k in ("x", "width", "x1", "x2")} for e in
             elements(drawing, tag, cls)]  # fmt: skip
    return [(e["x"], e["x"] + e["width"]) if tag == "rect" else (e["x1"], e["x2"]) for e in found]


def test_an_axis_maps_its_ends_to_its_ends() -> None:
    axis = marks.Axis(10.0, 20.0, 100.0, 300.0)
    assert [axis(value) for value in (10.0, 15.0, 20.0)] == [100.0, 200.0, 300.0]


def test_text_is_shortened_to_its_room_and_names_move_apart_from_the_first() -> None:
    assert marks.shortened("abcdefgh", 4 * marks.CHARACTER) == "abc…"
    assert marks.apart([14.0, 14.0, 90.0, 14.0], 13, 14, 200) == [14.0, 27.0, 90.0, 40.0]
    drawn, _ = marks.legend([marks.Entry("a name of a way", BLUE)] * 4, 0.0)
    ends = [
        float(e.attrib["x"]) + marks.CHARACTER * 15 for e in elements(f"<svg>{''.join(drawn)}</svg>", "text", "label")
    ]
    assert max(ends) <= marks.WIDTH
    assert marks.described([str(n) for n in range(30)]).count(";") == marks.MOST_SAID


def test_the_front_is_what_no_other_beats() -> None:
    assert scatter.pareto([(3, 6), (1, 5), (2, 4), (3, 7), (2, 6), (4, 7)]) == [(1, 5), (2, 6), (3, 7)]
    spots = [Spot(name, x, y, BLUE) for name, x, y in (("a", 1.0, 5.0), ("b", 2.0, 6.0), ("c", 3.0, 7.0))]
    limit = Limit("memory", 2.0)
    drawing = scatter.scatter(spots, title="", units=(plain, plain), names=("", ""), limit=limit)
    assert len(elements(drawing, "circle", "on-front")) == 2, "what takes more than there is is no answer"


def test_dots_have_their_median_and_their_interval() -> None:
    drawing = charts.dots([Row("x", [100.0, 200.0, 900.0], 200.0, (150.0, 850.0))], title="", unit=plain)
    axis = across(drawing)
    assert spans_of(drawing, "line", "median") == [near(axis(200.0), axis(200.0))]
    assert spans_of(drawing, "rect", "band") == [near(axis(150.0), axis(850.0))]


def test_parts_of_a_bar_follow_each_other_with_what_was_predicted_and_where_it_lies() -> None:
    bar = Bar("x", {"a": 300.0, "b": 200.0, "c": 100.0}, predicted=450.0, interval=(500.0, 900.0))
    looks = LOOKS | {"c": Look("red")}
    drawing = charts.bars([bar], looks=looks, title="", unit=plain)
    axis = across(drawing)
    found = spans_of(drawing, "rect", "fill")[:3]
    assert found == [near(axis(0), axis(300)), near(axis(300), axis(500)), near(axis(500), axis(600))]
    assert spans_of(drawing, "line", "median") == [near(axis(500), axis(900))] and axis.high >= 900
    assert spans_of(drawing, "line", "predicted")[0] == near(axis(450), axis(450))
    assert charts.reaching([bar]) == 900.0


def test_a_step_of_a_waterfall_begins_where_the_last_one_ended() -> None:
    steps = [Step("a", 20.0), Step("b", -10.0), Step("c", 5.0)]
    drawing = charts.waterfall(("x", 40.0), ("y", 55.0), steps, title="", unit=plain)
    axis = across(drawing)
    ends = [(0, 40), (40, 60), (50, 60), (50, 55), (0, 55)]
    assert spans_of(drawing, "rect", "fill") == [near(axis(a), axis(b)) for a, b in ends]
    assert marks.signed(-2.0, plain) == "-2" and marks.signed(0.0, plain) == "+0"


def test_a_line_is_dotted_where_others_ran_in_between() -> None:
    two, three = Series("a", [(2, 1.0), (4, 1.0)], look=BLUE), Series("b", [(2, 1.0), (3, 1.0), (4, 1.0)], look=BLUE)
    drawing = lines([two, three], title="", unit=plain, along="processes", every=True)
    assert len(elements(drawing, "line", "gap")) == len(elements(drawing, "polyline", "line")) == 1
    assert _said(drawing).startswith("a: 1 at processes 2, 1 at 4")


def test_powers_are_equally_wide_and_what_is_too_small_stands_at_the_foot() -> None:
    line = Series("a", [(1, 1e-30), (10, 1.0), (1000, 10.0)], look=BLUE)
    drawing = lines([line], title="", unit=plain, along="step", powers=True, decades=True)
    (found,) = elements(drawing, "polyline", "line")
    points = [tuple(map(float, place.split(","))) for place in found.attrib["points"].split()]
    assert points[2][0] - points[0][0] == pytest.approx(3 * (points[1][0] - points[0][0]), abs=0.05)
    assert {e.text for e in elements(drawing, "text", "tick")} >= {"1", "10", "100", "1000", "0", "step"}
    assert 0 <= points[2][1] < points[1][1] < points[0][1] <= 200


def test_many_points_are_thinned_and_lines_that_are_the_same_become_one() -> None:
    points = [(float(n), float(n)) for n in range(10)]
    assert thinned(points, 4) == points[::3] and thinned(points, 10) == points
    large, small = ([Series("", [(0, scale * y)]) for y in (1.0, 1.001, 1.2)] for scale in (1000.0, 0.001))
    for one, close, far in (large, small):
        assert same_within(one, close, 0.01) and not same_within(one, far, 0.01)
    names = [Series(name, [(0, 1.0)]) for name in ("data parallel", "zero1", "zero2")]
    assert [one.label for one in merged(names, 0.01)] == ["data parallel and 2 more"]


def test_a_timeline_begins_with_its_first_span_in_whatever_order() -> None:
    looks = {kind: (kind, PASSES[kind]) for kind in "FB"}
    found = [Span("rank 0", "B", "", 8.0, 9.0), Span("rank 1", "F", "", 6.0, 8.0), Span("rank 0", "F", "", 5.0, 7.0)]
    drawing = gantt(found, title="", unit=plain, looks=looks)
    axis = across(drawing)
    where = [near(axis(a), axis(b)) for a, b in ((3, 4), (1, 3), (0, 2))]
    assert spans_of(drawing, "rect", "span") == where and spans_of(drawing, "rect", "idle")[0] == near(axis(0), axis(4))
    assert _said(drawing) == "rank 0: busy for 3 of 4; rank 1: busy for 2 of 4"


def test_colours_of_numbers_go_from_pale_to_dark() -> None:
    drawing = heatmap(["a", "b"], [0, 1, 2], [[1.0, 100.0, 10.0], [0.0, 1.0, 1.0]], title="", unit=plain, along="step")
    fills = [e.attrib["fill"] for e in elements(drawing, "rect", "cell")]
    assert fills[:4] == [MAGNITUDES[0], MAGNITUDES[-1], MAGNITUDES[2], "none"]
    assert _said(drawing) == "a: 1 to 100; b: 1 to 1"
    assert coloured(np.array([[0.0]]), signed=True).tolist() == [[[255, 255, 255]]]
    inside = cloud({"a": (BLUE, [(0.5, 0.5), (2.0, 0.0), (0.0, -2.0)])}, title="", reach=1.0)
    assert len(elements(inside, "circle", "soft")) == 1 and "a (2 outside)" in inside


def test_a_cloud_has_a_scale() -> None:
    drawing = cloud({"a": (BLUE, [(1.0, -2.0)])}, title="", reach=2.5)
    numbers = [(e.text, e.attrib["text-anchor"]) for e in elements(drawing, "text", "tick")]
    assert [n for n, anchor in numbers if anchor == "middle"] == ["-2", "-1", "0", "1", "2"]
    places = {
        e.text: float(e.attrib["y"]) - 4 for e in elements(drawing, "text", "tick") if e.attrib["text-anchor"] == "end"
    }
    (point,) = elements(drawing, "circle", "soft")
    assert float(point.attrib["cy"]) == places["-2"]


def test_columns_sort_by_their_numbers_and_those_of_which_nothing_is_known_are_left_out() -> None:
    assert [Cell("", value).key for value in (1234.5678, 0.000123456, None)] == ["1234.57", "0.000123456", ""]
    rows = [[Cell("a"), Cell(UNKNOWN), Cell(UNKNOWN)], [Cell("b"), Cell("1"), Cell(UNKNOWN)]]
    found = table("", [Column(name) for name in ("name", "some", "none")], rows)
    assert [column.name for column in found.columns] == ["name", "some"] and len(found.rows[0]) == 2
