"""A number so large that memory does not suffice ends a command in one line, whoever says that there is none."""

import numpy as np
import pytest
import torch

from paralab import cli
from paralab.errors import is_out_of_memory
from paralab.options.arguments import Parser, whole

HUGE = 2**45
ALLOCATE = {
    "python": lambda: bytearray(2**62),
    "numpy": lambda: np.ones((HUGE, 8)),
    "torch": lambda: torch.empty(HUGE, 8),
    "torch, past what can be counted": lambda: torch.empty(2**62, 2**10),
}


@pytest.mark.parametrize("library", ALLOCATE)
def test_it_is_one_line(library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> int:
        ALLOCATE[library]()
        return 0

    monkeypatch.setattr(cli, "_dispatch", command)
    assert cli.main(["data"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paralab: error: memory does not suffice (") and line.endswith("use smaller numbers")


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(words: list[str]) -> int:
        raise RuntimeError("something else")

    monkeypatch.setattr(cli, "_dispatch", command)
    with pytest.raises(RuntimeError, match="something else"):
        cli.main(["data"])
    assert not is_out_of_memory(ValueError("no memory of it"))


def test_a_bound_of_its_own_is_said() -> None:
    parser = Parser(prog="it")
    parser.add_argument("--n", type=whole(1, 10))
    assert parser.parse_args(["--n", "10"]).n == 10
    with pytest.raises(Exception, match="use a whole number of at least 1 and at most 10"):
        parser.parse_args(["--n", "11"])
