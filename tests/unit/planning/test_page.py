"""The page of a plan: it opens offline, holds all charts, and what it draws is what was predicted."""

import base64
import csv
import hashlib
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from paralab import cli
from paralab.pages import scatter
from paralab.planning import pictures
from paralab.planning.search import search
from tests.unit.benchmarks.report.test_report import Page

QUESTION = {"layers": 24, "hidden": 2048, "heads": 16, "n_gpus": 16, "global_batch_size": 64, "gpu": "A100-SXM4-40GB"}
TITLES = {"Throughput against memory", "Memory of the fullest device", "Step time by cause", "Step time with its range"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("plan") / "plan.html"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in QUESTION.items()]
    assert cli.main(["plan", *words, "--top", "3", "--price-per-gpu-hour=2", "--tokens=20x", f"--report={out}"]) == 0
    return out.read_text(encoding="utf-8")


def test_it_opens_offline_and_holds_every_chart(page: str) -> None:
    found = Page(page)
    assert found.all("script") == [{}] and not found.all("link") and not found.all("img")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style and base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in page
    assert {*TITLES, "Scaling, predicted"} <= {text.strip() for text in found.text["h3"]}
    assert {"The training", "Bytes of a weight", "What ZeRO divides states by"} <= {t.strip() for t in found.text["h3"]}
    assert "device-hours x price of one" in found.words("td") and "Predicted, not measured" in found.words("p")
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    (link,) = [link for link in found.all("a") if "download" in link]
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link["href"].partition(",")[2]).decode())))
    assert len(rows) == 3 and rows[0]["layout"] in found.words("th")
    assert "paralab itself does not train" not in found.words("p")


def test_layouts_that_paralab_does_not_train_are_marked(tmp_path: Path) -> None:
    words = "plan --layers 24 --hidden 2048 --n-gpus 16 --set pp=4 --set schedule=zb-h2 --top 2 --report"
    assert cli.main([*words.split(), str(tmp_path / "p.html")]) == 0
    page = Page((tmp_path / "p.html").read_text())
    assert page.words("th").count(" *") == 2 and "* paralab itself does not train this layout." in page.words("p")


def test_a_page_says_what_would_fit_where_nothing_does(tmp_path: Path) -> None:
    words = "plan --layers 48 --hidden 8192 --n-gpus 4 --global-batch-size 8 --gpu A100-SXM4-40GB --report"
    assert cli.main([*words.split(), str(tmp_path / "p.html")]) == 0
    page = Page((tmp_path / "p.html").read_text())
    assert "No layout fits" in page.words("p") and "GPUs of this kind would do" in page.words("p")
    assert {*TITLES} <= {text.strip() for text in page.text["h3"]}


def test_points_of_the_front_are_those_that_nothing_beats_and_that_fit() -> None:
    found = search(QUESTION)
    drawn = pictures.against_memory(found, "tokens").drawing
    rings = len(re.findall("on-front", drawn))
    memory, rate = found.prediction.memory_gib, 1 / found.prediction.step_time_s
    inside = memory <= found.settled.device.memory_gib
    best = scatter.pareto(list(zip(memory[inside].tolist(), rate[inside].tolist(), strict=True)))
    assert 1 < rings <= len(best) and 'class="limit"' in drawn


def test_scaling_is_what_a_search_on_fewer_devices_finds() -> None:
    found = search(QUESTION)
    scaled = pictures.scaling(found, QUESTION, None, "")
    same = {one.n_gpus: one for one in scaled if not one.grows}
    assert sorted(same) == [1, 2, 4, 8, 16]
    eight = search(QUESTION | {"n_gpus": 8})
    assert same[8].step_time_s == eight.prediction.step_time_s[eight.order[0]]
    grown = {one.n_gpus: one for one in scaled if one.grows}
    assert grown[8].units_per_s * grown[8].step_time_s == pytest.approx(64 * 8 // 16 * 2048)
    assert grown[16].step_time_s == same[16].step_time_s


def test_a_report_that_cannot_be_written_is_refused_before_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("plan --layers 2 --hidden 128 --n-gpus 2 --report /proc/p.html".split()) == 2
    assert capsys.readouterr().out == ""
