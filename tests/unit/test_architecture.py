"""The picture shows what is imported and nothing lies on anything else; a step goes the way that the page tells."""

import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import ImageFont

from paralab.benchmarks.documents import architecture, drawing
from paralab.benchmarks.documents.architecture import FLOORS, ROOT, on_floors, uses, without_shortcuts
from paralab.benchmarks.documents.drawing import HEIGHT, WIDTH, Box, draw
from paralab.benchmarks.documents.flow import FLOW
from paralab.cli import main
from paralab.records.reading import read
from paralab.records.writing import append

SVG = "{http://www.w3.org/2000/svg}"


def reached(used: Mapping[str, set[str]], room: str) -> set[str]:
    return used[room].union(*(reached(used, other) for other in used[room]))


def test_arrows_lead_to_all_that_is_imported_and_none_says_it_twice() -> None:
    used, drawn = uses(), without_shortcuts(uses())
    for room in FLOORS:
        assert drawn[room] <= used[room] <= reached(drawn, room)
        assert not any(drawn[room] & reached(drawn, other) for other in drawn[room])


def test_rooms_of_one_floor_do_not_import_each_other() -> None:
    used = uses()
    assert [room for floor in on_floors(used) for room in floor] == list(FLOORS)
    assert not any(other in used[room] for floor in on_floors(used) for room in floor for other in floor)


def drawn_boxes(svg: str) -> list[tuple[float, float]]:
    return [
        (float(rect.attrib["x"]), float(rect.attrib["y"]))
        for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect")
        if rect.attrib["class"] == "box"
    ]


def drawn_points(svg: str) -> Iterator[tuple[float, float]]:
    """Yield points along all arrows."""
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if path.attrib["class"] != "arrow":
            continue
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        if "v" in path.attrib["d"]:
            x, y, down = numbers
            yield from ((x, y + down * i / 20) for i in range(21))
            continue
        ends = list(zip(numbers[::2], numbers[1::2], strict=True))
        for t in (i / 20 for i in range(21)):  # the cubic curve of four points (Bernstein)
            shares = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
            x, y = (sum(share * end[axis] for share, end in zip(shares, ends, strict=True)) for axis in (0, 1))
            yield x, y


WIDE = [[Box("a", "")], [Box("b", ""), Box("c", ""), Box("d", "")], [Box("e", "")], [Box("f", "")]]
ALL = [("a", "b"), ("a", "e"), ("a", "f"), ("b", "f"), ("c", "e"), ("d", "e"), ("d", "f"), ("e", "f")]


@pytest.mark.parametrize("make", [architecture.picture, lambda: draw(WIDE, ALL, title="")], ids=["rooms", "all"])
def test_no_box_lies_on_another_and_no_arrow_crosses_one(make: Callable[[], str]) -> None:
    boxes = drawn_boxes(svg := make())
    for (x, y), (other_x, other_y) in itertools.combinations(boxes, 2):
        assert abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT
    for x, y in drawn_points(svg):
        assert not any(left < x < left + WIDTH and top < y < top + HEIGHT for left, top in boxes)


def test_texts_stay_in_their_boxes_and_apart() -> None:
    svg = architecture.picture()
    texts = list(ElementTree.fromstring(svg).iter(f"{SVG}text"))
    reaches = []  # of each text: left, right, baseline
    for text in texts:
        size = 15 if text.get("class") == "name" else 11
        length = 1.2 * ImageFont.load_default(size).getlength(text.text or "")  # other fonts are wider
        x, ends = float(text.attrib["x"]), text.get("class") == "corner"
        reaches.append((x - length * ends, x + length * (not ends), float(text.attrib["y"])))
    for left, right, y in reaches:
        assert any(x < left and right < x + WIDTH and top < y < top + HEIGHT for x, top in drawn_boxes(svg))
    for (left, right, y), (other_left, other_right, other_y) in itertools.combinations(reaches, 2):
        assert abs(y - other_y) >= 11 or right < other_left or other_right < left


def test_arrows_to_one_box_share_their_way_and_each_end_has_a_head() -> None:
    heads = re.findall(r'class="head" d="M[\d.]+ ([\d.]+)', draw(WIDE, ALL, title=""))
    # b has one; e those of a, c and d; f that of e, and one of a, b and d, which pass the floor of e
    assert sorted(Counter(heads).values()) == [1, 2, 3]


def test_arrows_go_down_and_texts_fit() -> None:
    with pytest.raises(ValueError, match="does not go down"):
        draw(WIDE, [("e", "a")], title="")
    with pytest.raises(ValueError, match="4 lines"):
        draw([[Box("a", "x" * (drawing.CHARACTERS * drawing.LINES + 1))]], [], title="")


def test_a_function_that_is_not_there_has_to_be_corrected() -> None:
    with pytest.raises(ValueError, match="correct FLOW"):
        architecture._where(["parallel/cli.py:main", "parallel/cli.py:start"])


def test_a_step_goes_the_way_that_the_page_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = [function for stage in FLOW for function in stage.functions]
    names = {re.split("[:.]", function)[-1] for function in told}
    called: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if (code := frame.f_code).co_name in names:
            file = os.path.realpath(code.co_filename)  # paralab may be links to the folders of the checkout (./check)
            called.setdefault(f"{file.removeprefix(f'{ROOT}/')}:{code.co_qualname}")

    run = "run --model gpt2 --size tiny --layout dp1/zero3 --global-batch-size 2 --steps 2 --warmup 0 --no-parity"
    before = sys.gettrace()
    sys.settrace(note)
    try:
        assert main([*run.split(), "--out", "a.csv"]) == 0
        append("b.csv", replace(read("a.csv")[0], run_id="another"))
        assert main(["compare", "a.csv", "b.csv"]) == 0
    finally:
        sys.settrace(before)
    assert [function for function in called if function in told] == told
