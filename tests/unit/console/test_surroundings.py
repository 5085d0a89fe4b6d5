"""What a command finds around it is said in one line with what to type, before a library says it in its own words."""

import os
import resource
import signal
from pathlib import Path

import pytest

from paralab.cli import main
from paralab.console import signals
from paralab.options.arguments import not_text


def test_too_few_open_files_are_refused_before_something_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (32, 32))
    assert main(["strategies"]) == 2
    assert capsys.readouterr().err == (
        "paralab: error: 32 files may be open at once, 64 are needed: type ulimit -n 1024 before it\n"
    )


def test_a_variable_that_torch_cannot_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fake = tmp_path / "torch" / "__init__.py"
    fake.parent.mkdir()
    fake.write_text('raise ValueError("the value\\nis none")')
    code = compile(fake.read_text(), str(fake), "exec")
    monkeypatch.setattr("paralab.cli.import_module", lambda name: exec(code))
    for name in [name for name in os.environ if name.startswith(("TORCH_", "PYTORCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_LOGS", "nonsense")
    assert main(["strategies"]) == 2
    said = "torch cannot be imported (ValueError: the value is none): unset TORCH_LOGS, or give a value that torch"
    assert said in capsys.readouterr().err


def test_an_error_of_a_command_is_not_taken_for_one_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("paralab.cli.import_module", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["strategies"])


@pytest.mark.parametrize(("launcher", "said"), [(None, b"paralab: stopped by SIGTERM\n"), ("run", b"")])
def test_a_rank_that_torchrun_ends_leaves_the_word_to_the_one_that_failed(
    launcher: str | None, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launcher is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launcher)
    written: list[bytes] = []
    monkeypatch.setattr("paralab.console.signals.os.write", lambda number, text: written.append(text))
    signals._say(signal.SIGTERM)
    assert b"".join(written) == said


def test_a_word_that_the_encoding_of_the_terminal_lacks_is_not_called_damaged() -> None:
    assert not_text("gr\u00f6\u00dfe") is None
    as_ascii = "\u00e9/t.txt".encode().decode("ascii", errors="surrogateescape")
    assert "\u00e9/t.txt has letters that" in (not_text(as_ascii) or "")
    assert "PYTHONUTF8=1" in (not_text(as_ascii) or "")
    assert "no UTF-8" in (not_text("\udcff.txt") or "")
