"""What is refused before any process is started."""

import re

import pytest

from paralab import cli
from paralab.errors import WorldError
from paralab.processes import allowed


def test_more_processes_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "memory_allowed_bytes", lambda: 10 * allowed.FORKED_BYTES)
    allowed.check_processes_fit(10)
    with pytest.raises(WorldError, match=r"11 processes .* hold 10 of them: use --nproc 10 or fewer"):
        allowed.check_processes_fit(11)


@pytest.mark.parametrize(
    "words",
    [
        "optimise --problem logistic --methods gd --nproc 1000000",
        "run --model gpt2 --size tiny --strategy ddp --nproc 1000000 --global-batch-size 1000000 --out {}/a.csv",
        "tour --nproc 1000000",
    ],
)
def test_a_million_processes_are_not_begun(words: str, tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.format(tmp_path).split()) == 2
    assert re.search("1,000,000 processes .* use --nproc", capsys.readouterr().err.splitlines()[-1])
