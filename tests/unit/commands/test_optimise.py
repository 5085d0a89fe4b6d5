"""`paralab optimise`: a file with a line for each method and epoch, a picture, a table, and refusals in one line."""

import csv
from pathlib import Path

import numpy as np
import pytest

from paralab import cli
from paralab.commands import optimise_run
from paralab.commands.optimise import DEFAULTS, read
from paralab.convex.methods import METHODS
from paralab.data.images import Digits
from paralab.options.choices import CONVEX_METHODS
from paralab.running import task


def test_every_name_has_a_method() -> None:
    assert {name for names in CONVEX_METHODS.values() for name in names} == METHODS.keys()
    assert CONVEX_METHODS.keys() == DEFAULTS.keys()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("optimise --problem signal --methods newton", "'newton' is for --problem logistic"),
        ("optimise --methods newtn", "'newtn' is unknown (did you mean newton?)"),
        ("optimise --methods gd,newton,gd", "has gd twice: use --methods gd,newton"),
        ("optimise --problem signal --transform dct,dct", "dct is there twice"),
        ("optimise --problem signal --nproc 2", "it is one signal, use --nproc 1"),
        ("optimise --methods sgd --nproc 2", "2 processes cannot divide: use minibatch"),
        ("optimise --l2 0", "use --l2 above 0, or --methods gd,newton"),
        ("optimise --l2 -1", "use a number above 0"),
        ("optimise --problem images --l2 1", "--l2 does not apply to --problem images: leave it out"),
        ("optimise --problem signal --transform dtc", "'dtc' is unknown (did you mean dct?)"),
        ("optimise --problem signal --transform dct --tv 1", "use --l1 for its weight"),
        ("optimise --problem images --l1 1", "name them, --transform dct,haar, or use --tv"),
        ("optimise --transform dct", "--transform does not apply to --problem logistic"),
        ("optimise --problem images --size 7 --transform haar", "7 x 7 is odd: use --transform dct"),
        ("optimise --plot here.txt", "use a name ending in .svg, .png, .pdf"),
        ("optimise --size 7 --global-batch-size 8001", "--global-batch-size 8001 with 8000 images: use 8000 or fewer"),
        ("optimise --size 20 --methods gd", "--size 20 is unknown for logistic"),
        ("run --model gpt2 --optimizer newton", "--optimizer newton is for convex functions, and trains no model"),
        ("train --model logistic --optimizer svrg", "paralab optimise --problem logistic --methods svrg"),
    ],
)
def test_refusals(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("["))
    assert says in line


def test_a_hessian_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any process is started."""
    monkeypatch.setattr(optimise_run, "memory_available_bytes", lambda: 2**21)
    monkeypatch.setattr(task, "start", pytest.fail)
    assert cli.main("optimise --size 7 --methods gd --nproc 2".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the Hessian of 500 x 500 numbers, by which the minimum is found, takes 0.0041 GiB" in line
    assert "in each of 2 processes" in line
    assert "use a smaller --size or --nproc" in line


def test_methods_that_cannot_be_divided_are_left_out_where_none_were_named() -> None:
    options = dict.fromkeys({name for defaults in DEFAULTS.values() for name in defaults})
    asked = read({**options, "problem": "logistic", "methods": None, "nproc": 2, "seed": 0})
    assert asked.methods == ("gd", "minibatch", "svrg", "newton")


def test_a_signal_is_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "signal.csv", tmp_path / "signal.png"
    words = "optimise --problem signal --samples 64 --epochs 20".split()
    assert cli.main([*words, "--out", str(out), "--plot", str(plot)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["method"], row["epochs"]) for row in rows] == [
        (name, str(epoch)) for name in ("subgradient", "ista", "fista") for epoch in range(21)
    ]
    assert all(float(row["suboptimality"]) <= float(row["bound"]) for row in rows if row["bound"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "mean squared error" in said and max(map(len, said.splitlines())) <= 80


def test_a_singular_hessian_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of small images in the middle of larger ones: the pixels around them are dark in all."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (400, 2, 2), dtype=np.uint8), generator.integers(0, 3, 400)
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    words = "optimise --size 7 --methods newton --l2 0 --data".split()
    assert cli.main([*words, f"file:{tmp_path}/some.npz"]) == 0
    said = capsys.readouterr().out
    assert "\nnewton: step 1: Hessian is singular: damped by " in said and max(map(len, said.splitlines())) <= 80


def test_newton_is_measured_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels, _ = Digits().arrays("train")
    np.savez(tmp_path / "some.npz", images=images[:400], labels=labels[:400])
    out = tmp_path / "digits.csv"
    words = "optimise --size 7 --methods newton,gd --epochs 10".split()
    assert cli.main([*words, "--data", f"file:{tmp_path}/some.npz", "--out", str(out)]) == 0
    rows = [row for row in csv.DictReader(out.read_text().splitlines()) if row["method"] == "newton"]
    assert min(float(row["gradient_norm"]) for row in rows) < 1e-8 and len(rows) <= 11
    said = capsys.readouterr().out
    assert "logistic 7: 360 images, 10 x 50 weights" in said and max(map(len, said.splitlines())) <= 80
