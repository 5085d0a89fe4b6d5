import base64
import gzip
import hashlib
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paralab.benchmarks.report import results_page, sections
from paralab.benchmarks.report.report import main
from paralab.benchmarks.report.results_page import composed, render
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.errors import UsageError
from paralab.measure.span import SpanRecord
from paralab.pages import marks, scatter
from paralab.pages import page as page_module
from paralab.records.cells import line_of
from paralab.records.changes import SCHEMA
from paralab.records.kinds import field_types, value_kind
from paralab.records.log import MemoryRecord, StepLog, StepRecord
from paralab.records.log_files import log_path
from paralab.records.reading import read
from paralab.records.row import REQUIRED, RunRecord, header
from paralab.records.writing import append
from tests.unit.synthetic_runs import run, runs

A = [0.100, 0.101, 0.099, 0.102, 0.098, 0.1005]
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>=cmd()\x00"
VOID = {"meta", "br"}
SCRIPT = (Path(page_module.__file__).parent / "page.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collect elements with their attributes, text by element, and whether tags nest."""

    def __init__(self, html):
        super().__init__()
        self.elements: list[Any] = []
        self.open: list[Any] = []
        self.text: dict[Any, Any] = {}
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, *tags):
        return " ".join(part for tag in tags for part in self.text.get(tag, []))


def write(path, records):
    for record in records:
        append(path, record)
    return path


def sweep(tmp_path):
    """Write runs of one, two and four processes on a CPU, and two on GPUs, with logs and failures."""
    path = tmp_path / "sweep.csv"
    seen = [
        *runs(A, strategy="single", layout="dp1", world_size=1, every=9),
        *runs([t / 1.6 for t in A], strategy="ddp", first=1, every=9, comm_dp_sent_bytes=1e6,
              comm_dp_predicted_sent_bytes=1e6, memory_parameters_bytes=10**6, memory_optimizer_bytes=2 * 10**6),
        *runs([t / 1.3 for t in A], strategy="pipeline", layout="pp2/1f1b/mb4", first=2, every=9, bubble_share=0.2,
              process_peak_bytes=700_000_000),
        *runs([t / 2 for t in A], strategy="ddp", layout="dp4", world_size=4, first=3, every=9),
        run(70, status="oom", strategy="zero1", step_time_p50_s=None, failed_rank=1, failed_step=2, reason=EVIL),
    ]  # fmt: skip
    write(path, [replace(record, run_id=f"r{i}") for i, record in enumerate(seen)])
    for number, record in enumerate(seen):
        for rank in range(record.world_size if record.strategy in ("single", "pipeline") else 0):
            log = StepLog(log_path(path, f"r{number}", rank))
            for step in range(500):
                log.write(StepRecord(step=step, loss=5 / (step + 1)))
            log.write(MemoryRecord(rank=rank, parameters_bytes=1000, activations_bytes=500))
            kinds: tuple[tuple[Literal["F", "B", "W"], float], ...] = (("F", 0.0), ("B", 0.3), ("W", 0.5))
            for kind, start in kinds:
                log.write(SpanRecord(step=1, rank=rank, stage=rank, kind=kind, micro_batch=0, start_s=start + rank / 10,
                                     end_s=start + 0.1 + rank / 10))  # fmt: skip
            log.close()
    gpu: dict[str, Any] = {"device": "cuda", "backend": "nccl", "gpu_name": "GPU X", "gpu_allocated_peak_bytes": 10**10}
    write(
        tmp_path / "gpu.csv",
        [*runs(A, every=2, **gpu), *runs([t * 2 for t in A], first=1, every=2, strategy="zero3", **gpu)],
    )
    return [path, tmp_path / "gpu.csv"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(sweep(tmp_path_factory.mktemp("sweep")))


def test_what_takes_long_says_how_far_it_is(tmp_path):
    files, told = sweep(tmp_path), io.StringIO()
    with Phases(Moment.now(), file=told) as phases:
        composed(files, title="", prices={}, caught=[], phases=phases)
    names = [line.partition("] ")[2] for line in told.getvalue().splitlines()]
    assert names == ["reading rows", "reading logs and comparing", "drawing charts", "writing the page"]


def test_the_page_asks_the_network_for_nothing(page):
    parsed = Page(page)
    assert not {"link", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in parsed.elements}
    for tag, attributes in parsed.elements:
        assert "style" not in attributes and not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:text/csv;", "data:application/gzip;")), (tag, name)
    (style,) = parsed.text["style"]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_the_only_script_is_the_one_of_the_package_and_it_makes_no_elements_of_text(page):
    parsed = Page(page)
    assert parsed.all("script") == [{}] and parsed.text["script"] == [SCRIPT]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function(",
                 "createContextualFragment", "srcdoc", "fetch(", "XMLHttpRequest", "import("):  # fmt: skip
        assert word not in SCRIPT


def test_the_policy_allows_the_style_sheet_and_the_script_by_hash_and_nothing_else(page):
    parsed = Page(page)
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    style, script = (
        f"'sha256-{base64.b64encode(hashlib.sha256(parsed.text[tag][0].encode()).digest()).decode()}'"
        for tag in ("style", "script")
    )
    assert policy == (f"default-src 'none'; style-src {style}; script-src {script}; "
                      "require-trusted-types-for 'script'; base-uri 'none'; form-action 'none'")  # fmt: skip


def test_every_anchor_is_there_and_levels_of_headings_follow_each_other(page):
    parsed = Page(page)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    anchors = [link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")]
    assert len(anchors) > 40 and set(anchors) <= set(ids)
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_have_captions_headers_and_can_be_scrolled_by_keys(page):
    parsed = Page(page)
    assert len(parsed.all("caption")) == len(parsed.all("table")) > 5
    assert {attributes.get("scope") for attributes in parsed.all("th")} == {"col", "row"}
    regions = [attributes for attributes in parsed.all("div") if "scroll" in attributes.get("class", "")]
    assert len({region["aria-label"] for region in regions}) == len(regions) >= len(parsed.all("table"))
    assert all(region["tabindex"] == "0" and region["role"] == "region" for region in regions)
    numbers = [attributes["class"] for attributes in parsed.all("td") if "data-v" in attributes]
    assert numbers and all("number" in look for look in numbers)


def test_the_verdict_and_the_caveats_come_first(page):
    headings = re.findall(r"<h[23]>(.*?)</h", page)
    assert headings[0] == "Verdict" and headings[1].startswith("Step time: ") and headings[2] == "Before you believe it"
    assert "Compared with ddp (62.7 ms a step): Slower: pipeline by 23.1%. Failed: zero1." in page
    assert "25 of 37 runs used CPUs" in page and "1 of 37 runs failed" in page


def test_every_part_is_there(page):
    parsed = Page(page)
    titles = [title.strip() for level in ("h3", "h4") for title in parsed.text[level]]
    for title in ("Step time", "Throughput against memory", "Memory by category", "Communication by axis", "Loss",
                  "Pipeline timeline: pipeline", "gpt2 nano fp32 CPU: the global batch stays the same"):  # fmt: skip
        assert title in titles, title
    words = Page(page).words("th", "td", "pre", "h2")
    for said in ("python benchmarks/run.py", "Failures", "oom", "Environment", "2.13.0", "1.231 [", "Run it again"):
        assert said in words, said


def tables(page):
    """Return the text of all rows of each table, by caption."""
    found = {}
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        parsed = Page(table)
        found[parsed.text["caption"][0]] = parsed.words("th", "td", "a")
    return found


def test_cpu_and_gpu_never_share_a_table(page):
    found = tables(page)
    by_device = {caption: rows for caption, rows in found.items() if "CPU" in caption or "GPU" in caption}
    assert len([caption for caption in by_device if re.match(r"Work \d", caption)]) == 2
    for caption, rows in by_device.items():
        assert ("gpu" in caption.lower()) == ("zero3" in rows), caption
    (first, *_) = found
    assert "GPU X" in first and "single" not in found[first]


def test_what_was_done_in_one_way_only_shares_a_table(page):
    found = tables(page)
    assert "single" in found["Work done in one way only, on CPUs"] and "Work done in one way only, on GPUs" not in found
    headings = Page(page).text["h3"]
    assert any("2 processes" in heading for heading in headings) and page.count('id="work-4"') == 1


def test_every_run_has_a_row(page):
    found = tables(page)
    rows = {caption: words.count("2025-01-01 ") for caption, words in found.items() if caption.startswith("Every run")}
    assert rows == {"Every run, on GPUs": 12, "Every run, on CPUs": 25}


def test_sizes_are_mib_and_times_ms_in_tables_as_in_charts(page):
    found = tables(page)
    assert "9,537 MiB" in next(words for name, words in found.items() if "GPU X" in name)
    runs = found["Every run, on CPUs"]
    assert "668 MiB" in runs and "0.954 MiB" in runs
    assert "62.7 ms" in next(words for name, words in found.items() if "(gloo)" in name)
    assert not re.search(r"\d (B|KiB|GiB|kB|MB|GB)\b", " ".join(found.values()))


def test_one_dot_is_one_run(page):
    rest = page[page.index('<section id="work">') :]
    assert len(re.findall(r'class="mark [^"]*dot"', rest)) == 6 * 6
    first = page[: page.index('<section id="work">')]
    assert len(re.findall(r'class="mark [^"]*dot"', first)) == 2 * 6  # of the work that the verdict is about


def test_equal_curves_are_one_line_that_is_thinned(page):
    curves = re.findall(r'points="([^"]*)" class="line c-\w+"><title>([^<]*)', page)
    (points,) = [points for points, label in curves if label == "single (1 process), pipeline"]
    assert 100 < len(points.split()) <= 200
    assert "All losses are equal in every digit." in page


def test_the_csv_inside_is_the_file(tmp_path):
    files = sweep(tmp_path)
    links = [link for link in Page(render(files)).all("a") if "download" in link]
    assert [link["download"] for link in links] == ["sweep.csv", "gpu.csv"]
    for path, link in zip(files, links, strict=True):
        assert base64.b64decode(link["href"].split("base64,")[1]) == path.read_bytes()


def test_a_large_file_is_carried_compressed():
    content = b"time,loss\n" + b"0.25,1.5\n" * 100_000
    found = page_module.download("runs.csv", content, kind="text/csv")
    assert found.name == "runs.csv.gz" and len(found.uri) < len(content) / 100
    assert gzip.decompress(base64.b64decode(found.uri.split("base64,")[1])) == content


def test_a_page_of_a_thousand_rows_is_under_two_megabytes(tmp_path):
    def size(count):
        path = tmp_path / f"{count}.csv"
        for i in range(count // 10):
            write(path, [run(10 * i + k, size=f"s{i % 10}", strategy=f"s{k}", loss_last=1.5) for k in range(10)])
        return len(render([path]))

    small, large = size(100), size(200)
    assert large + 8 * (large - small) < 2e6


def test_drawings_are_well_formed(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        for element in ElementTree.fromstring(drawing).iter():
            for name in ("x", "y", "cx", "cy", "width", "height", "x1", "x2"):
                assert float(element.get(name, 0)) >= -0.01, (element.tag, name)


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    columns = ("strategy", "layout", "command", "reason", "torch_version", "size", "engine", "gpu_name", "cpu_model")
    texts: dict[str, Any] = dict.fromkeys(columns, EVIL)
    path = write(tmp_path / "a.csv", [*runs(A, **texts), *runs(A, **{**texts, "strategy": EVIL + "2"}),
                                      run(99, status="crash", **texts)])  # fmt: skip
    for record in read(path)[:1]:
        log = StepLog(log_path(path, record.run_id, 0))
        log.write(StepRecord(step=1, loss=1.0))
        log.close()
    page = render([path], title=EVIL)
    parsed = Page(page)
    test_the_page_asks_the_network_for_nothing(page)
    test_the_only_script_is_the_one_of_the_package_and_it_makes_no_elements_of_text(page)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)
    assert "<script>alert(1)</script>" in parsed.words("th", "pre", "title", "h1")


def test_a_file_of_failures_alone_is_reported(tmp_path):
    path = write(tmp_path / "a.csv", [run(0, status="hang", step_time_p50_s=None, strategy=None, device=None)])
    page = render([path])
    assert "No run came to its end." in page and "hang" in page


def test_the_same_method_in_two_files_is_two_arms(tmp_path):
    files = [
        write(tmp_path / "before.csv", runs(A, every=2)),
        write(tmp_path / "after.csv", runs([2 * t for t in A], first=1, every=2)),
    ]
    words = Page(render(files)).words("th")
    assert "before: ddp" in words and "after: ddp" in words


def test_a_damaged_log_is_a_caveat(tmp_path):
    path = write(tmp_path / "a.csv", runs(A))
    log = log_path(path, read(path)[5].run_id, 0)
    log.parent.mkdir()
    log.write_text("{}\n")
    out = tmp_path / "r.html"
    assert main([str(path), "--out", str(out)]) == 0
    assert "is not a record of this version" in Page(out.read_text()).words("li")


def optional(name):
    if name == "schema":
        return st.just(SCHEMA)
    if name == "started_at":
        return st.sampled_from(["2026-01-31T12:00:00+00:00", "2026-02-01T00:00:00.123+00:00"])
    kind, choices = value_kind(field_types(RunRecord)[name])
    diverges = name in ("loss_first", "loss_last")
    known = st.sampled_from(choices) if choices else {
        str: st.sampled_from(["a", "single", "=b"]), bool: st.booleans(), int: st.sampled_from([0, 1, 2, 10**12]),
        float: st.floats() if diverges else st.sampled_from([0.0, 5e-324, 0.1, 1.0, 1e300]),
    }[kind]  # fmt: skip
    return known if name in REQUIRED else st.none() | known


@given(st.lists(st.fixed_dictionaries({f.name: optional(f.name) for f in fields(RunRecord)}), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_rows_give_a_page(tmp_path_factory, rows):
    records = [RunRecord(**{**row, "run_id": str(number)}) for number, row in enumerate(rows)]
    path = write(tmp_path_factory.mktemp("any") / "a.csv", records)
    if all(record.status == "dry run" for record in records):
        with pytest.raises(UsageError, match="at least one that is no dry run"):
            render([path])
    else:
        Page(render([path]))


@pytest.mark.parametrize(
    ("arguments", "said"), [(["none.csv"], "cannot be read"), (["--no"], "--help"), (["EMPTY"], "no runs to report")]
)
def test_bad_requests_end_with_one_line(tmp_path, capsys, arguments, said):
    (tmp_path / "empty.csv").write_bytes(line_of(header()))
    given = [str(tmp_path / "empty.csv") if a == "EMPTY" else a for a in arguments]
    assert main([*given, "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "r.html").exists()


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "a.csv", runs(A))
    monkeypatch.setattr(results_page, "composed", lambda *_, **__: pytest.fail("made first"))
    assert main([str(path), "--out", str(tmp_path / "no" / "r.html")]) == 2
    assert main([str(path), "--out", str(path / "r.html")]) == 2
    assert main([str(path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("choose another place with --out") == 3


def test_a_way_that_failed_parity_is_said_first(tmp_path):
    wrong = runs([t / 2 for t in A], strategy="zero1", parity=False, parameter_difference_max=0.68)
    page = render([write(tmp_path / "a.csv", [*runs(A, parity=True), *wrong])])
    first = page[page.index("Verdict") : page.index("Before you believe it")]
    said = "Parity FAILED, so its speed is not compared. zero1 (parity FAILED): 6 of 6 runs"
    assert f'<p class="verdict is-failed">{said}' in first
    assert "Not compared, as parity failed: zero1" in first and "Faster" not in first
    assert "Parity was not checked" not in page
    assert "Parity was not checked for 1 of 1 ways" in render([write(tmp_path / "b.csv", runs(A))])


@pytest.mark.filterwarnings("ignore:.*(read once|counts once)")
def test_files_of_one_name_and_a_file_given_twice(tmp_path):
    files = [tmp_path / "old" / "bench.csv", tmp_path / "new" / "bench.csv"]
    write(files[0], runs(A))
    write(files[1], [*runs(A), *runs([2 * t for t in A])])
    page = render([*files, files[0]])
    assert "Compared with old/bench: ddp (100 ms a step): Slower: new/bench: ddp by 100.0%." in page
    links = [link["download"] for link in Page(page).all("a") if "download" in link]
    assert "12 runs" in page and links == ["old-bench.csv", "new-bench.csv"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    beaten = {(x, y) for x, y in points for a, b in points if a <= x and b >= y and (a, b) != (x, y)}
    assert set(scatter.pareto(points)) == set(points) - beaten


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=6), st.booleans())
def test_an_axis_holds_all_values_between_round_numbers(values, zero):
    found = marks.axis(values, 10, 400, zero=zero)
    assert 2 <= len(found.ticks) <= 9 and sorted(found.ticks) == list(found.ticks)
    for value in values:
        if abs(value) < marks.LARGEST:
            assert 10 - 0.01 <= found(value) <= 400.01
    assert found(found.low) == 10 and found(found.high) == 400


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "paralab run --size nano --group g --repeat 2 --out runs/bench.csv",
            "paralab run --size nano --out again.csv",
        ),
        ("paralab run --out=r.csv --layout tp2", "paralab run --layout tp2 --out again.csv"),
        ("paralab train --preset alice --out 'a b'", "paralab train --preset alice --out again"),
        ("paralab run --size 'nano", "paralab run --size 'nano"),
    ],
)
def test_a_run_made_again_leaves_the_evidence_alone(command: str, told: str) -> None:
    assert sections.again(command) == told
