"""The command frame: quick help, one line per error, exit statuses, and a table that points at real functions."""

import argparse
import ast
import os
import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from paralab import cli
from paralab.console.outputs import check_writable, write_whole
from paralab.errors import DivergedError, FitError, LayoutError, ParalabError, RankError, WorldError, WriteError
from paralab.options.arguments import Parser
from paralab.processes import allowed
from paralab.records.environment import Environment


def run_command(monkeypatch: pytest.MonkeyPatch, function, *argv: str) -> int:
    """Run `paralab probe ARGV...`, with a command of that name which calls `function`."""
    monkeypatch.setitem(cli.TARGETS, "probe", "probe_module:start")
    monkeypatch.setitem(sys.modules, "probe_module", SimpleNamespace(start=function))
    return cli.main(["probe", *argv])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from paralab.cli import main; status = main(['--help']); "
        "heavy = {'torch', 'numpy', 'deepspeed', 'yaml', 'models'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else status)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    after = os.times()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in cli.COMMANDS)
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert used_s < 1  # a tenth is usual; importing torch alone takes longer


def test_a_configuration_is_read_without_torch() -> None:
    code = "import sys, paralab.options.flags as f; f.resolve(['--layout', 'dp2']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_a_pipeline_is_resolved_without_the_compiler_and_started_without_divided_tensors() -> None:
    """They take half a second and one second to import, in this process and then in the one that ranks come from."""
    code = (
        "import sys, paralab.benchmarks.run_start; from paralab.options.config import RunConfig; "
        "from paralab.planning import fit; from paralab.planning.resolve import resolve; "
        "work = resolve(RunConfig(strategy='pipeline', nproc=4, size='tiny')); fit.check(work); "
        "assert not {'torch.distributed.tensor', 'torch.distributed.checkpoint'} & set(sys.modules); "
        "import paralab.benchmarks.case.run; work.n_parameters; "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_request_that_cannot_be_carried_out_ends_with_2_and_a_run_that_failed_with_1() -> None:
    requests = (FitError, LayoutError, WorldError)
    failures = (ParalabError, DivergedError, RankError, WriteError)
    assert [[kind.exit_status for kind in kinds] for kinds in (requests, failures)] == [[2] * 3, [1] * 4]


def test_every_command_has_a_function_and_a_line_of_help() -> None:
    assert list(cli.TARGETS) == list(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.TARGETS))
def test_every_command_points_at_a_function(name: str) -> None:
    module, function = cli.TARGETS[name].split(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} does not exist"
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body  # not imported: that may load torch
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    assert function in defined


def test_a_command_gets_its_arguments_and_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    assert run_command(monkeypatch, lambda argv: seen.append(argv) or 3, "--model", "gpt2") == 3
    assert seen == [["--model", "gpt2"]]


@pytest.mark.parametrize(("error", "status"), [(LayoutError, 2), (DivergedError, 1)])
def test_an_error_is_one_line_and_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception], status: int
) -> None:
    def fail(argv: list[str]) -> int:
        raise error("got tp=4,\n  need tp=2")

    assert run_command(monkeypatch, fail) == status
    assert capsys.readouterr().err == "paralab: error: got tp=4, need tp=2\n"


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(monkeypatch, fail)


def test_a_warning_of_ours_is_a_line_without_its_place_in_the_code() -> None:
    ours, others = (cli._as_line(UserWarning("said"), UserWarning, file, 3) for file in (cli.__file__, "/x/numpy.py"))
    assert ours == "paralab: said\n" and others == "/x/numpy.py:3: UserWarning: said\n"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(monkeypatch, interrupt) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "times", "said"),
    [
        (signal.SIGINT, 1, "paralab: interrupted\n"),
        (signal.SIGTERM, 2, "paralab: stopped by SIGTERM\n"),  # as `timeout` does
    ],
)
def test_a_command_that_starts_no_ranks_ends_in_order_at_a_signal(
    number: int, times: int, said: str, tmp_path: Path
) -> None:
    code = (
        "import os, sys, time, types; from pathlib import Path; from paralab import cli\n"
        "def start(argv):\n"
        f"    try: os.kill(os.getpid(), {number:d}), time.sleep(20)\n"
        f"    finally: {times - 1} and os.kill(os.getpid(), {number:d}); Path({str(tmp_path / 'tidied')!r}).touch()\n"
        "sys.modules['m'] = types.SimpleNamespace(start=start); cli.TARGETS['probe'] = 'm:start'\n"
        "sys.exit(cli.main(['probe']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (128 + number, said) and (tmp_path / "tidied").exists()


SIGNALLED_WHILE_IMPORTED = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "paralab.axes" and not done:  # the first thing that takes a while
            done.append(name), os.kill(os.getpid(), int(sys.argv[1]))

done, helper = [], len(sys.argv) > 2 and __import__("multiprocessing.spawn")
sys.meta_path.insert(0, Finder)
sys.argv[0] = os.environ["STARTED_AS"]
import paralab.cli
"""


@pytest.mark.parametrize(("number", "said"), [(2, "paralab: interrupted\n"), (15, "paralab: stopped by SIGTERM\n")])
def test_a_signal_is_one_line_before_a_command_has_imported_anything(number: int, said: str) -> None:
    def signalled(started_as: str, *words: str) -> tuple[int, str]:
        line = [sys.executable, "-c", SIGNALLED_WHILE_IMPORTED, str(number), *words]
        env = {**os.environ, "STARTED_AS": started_as}
        done = subprocess.run(line, capture_output=True, text=True, timeout=30, env=env)
        return done.returncode, done.stderr

    assert signalled("/usr/bin/paralab") == (128 + number, said)
    # a program that imports paralab, and what is started to help a command, keep what they have
    for others in (["train.py"], ["/usr/bin/paralab", "helps"]):
        status, printed = signalled(*others)
        assert status == -number and "paralab:" not in printed


def test_an_unknown_command_is_refused_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verfy"]) == 2
    assert "'verfy' is unknown (did you mean verify?)" in capsys.readouterr().err


def test_no_command_prints_the_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: paralab" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_a_help_fits_into_80_columns_and_has_an_example_and_a_text_for_each_option(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Parser] = []
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Parser, "print_help", lambda self: shown.append(self))
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    (parser,) = shown
    lines = parser.format_help().splitlines()
    assert max(map(len, lines)) <= 80
    examples = [line for line in (parser.description or "").splitlines() if line.startswith("    ")]
    assert examples and all(f"paralab {command} " in line or "run.py --" in line for line in examples)
    texts = [action.help or "" for action in parser._actions if action.help != argparse.SUPPRESS]
    assert all(text[:1].isupper() and not text.endswith(".") for text in texts), texts


def test_the_usage_fits_into_80_columns() -> None:
    assert max(map(len, cli.usage().splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (["export", "run", "{file}/x"], "x/a file"),
        (["import-deepspeed", "saved", "/proc/x"], "/proc/x/a file"),
        (["sample", "--checkpoint", "run", "--out", "{file}/x.png"], "x.png"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    command: list[str], target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main([word.format(file=tmp_path / "file") for word in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{target} cannot be written" in line


def test_the_help_of_a_command_answers_without_torch_and_numpy_in_80_columns() -> None:
    code = (
        "import sys; from paralab.cli import main\n"
        "for name in sys.argv[1:]:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'numpy', 'jinja2'} & set(sys.modules), name"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *cli.COMMANDS], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --size tiny --strategy zero3 --nproc 4", "running gpt2 tiny: zero3, 4 processes, 20 steps"),
        ("run --model resnet --layout dp2.tp2", "running resnet: dp2.tp2, 4 processes, 20 steps"),
        ("tour", "a tour of gpt2: every strategy"),
        ("verify --nproc 1", "verifying gpt2 in its smallest size: every strategy, 1 process"),
        ("overhead --strategy ddp", "overhead of gpt2: ddp, 20 pairs of 20 steps"),
        ("bench --strategies ddp,zero3 --nprocs 2,4", "a sweep of gpt2: ddp, zero3, 2 or 4 processes, 6 repeats"),
        (
            "bench --layouts dp2,tp2 --until-decided 2% --max-repeats 9",
            "a sweep of gpt2: dp2, tp2, 6 to 9 repeats",
        ),
        ("peers --repeats 3", "baselines of gpt2 small: every variant, 3 runs of each"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_line_comes_from_rank_0_before_torch_is_there(
    words: str, said: str, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name, *rest = words.split()
    module, function = cli.TARGETS[name].split(":")
    command = getattr(import_module(module), function)
    monkeypatch.setenv("RANK", rank)
    workers = ("paralab.benchmarks.tour_worker", "paralab.commands.verify_cases", "paralab.benchmarks.run_start")
    for imported in ("torch", "paralab.planning.resolve", *workers):
        monkeypatch.setitem(sys.modules, imported, None)  # an import from here on fails
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Environment, "read", lambda: import_module("torch"))
    with pytest.raises(ImportError):
        command(rest)
    assert capsys.readouterr().out == (f"{said}\n" if rank == "0" else "")


def test_a_path_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run_command(monkeypatch, lambda words: Path(words[0]).mkdir(), str(file / "inside")) == 2
    assert capsys.readouterr().err == f"paralab: error: cannot use {file}/inside: Not a directory: give another path\n"


def test_without_the_locks_of_unix_a_line_names_wsl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert cli.main(["compare", "a.csv", "b.csv"]) == 2
    assert "on Windows, install and type it in WSL" in capsys.readouterr().err


def test_cores_are_counted_where_the_system_does_not_say_which_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert allowed.affinity() == os.cpu_count()


def test_without_proc_what_to_type_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed.check_proc()
    with pytest.raises(WorldError, match="mount -t proc"):
        allowed.check_proc(Path("nowhere"))
    monkeypatch.setattr(sys, "platform", "darwin")
    allowed.check_proc(Path("nowhere"))


def test_every_module_is_imported_and_a_case_runs_without_what_macos_lacks(tmp_path: Path) -> None:
    code = f"""
import os, sys, psutil, torch
for name in [name for name in dir(os) if name.startswith("sched_") and name != "sched_yield"] + ["pidfd_open"]:
    hasattr(os, name) and delattr(os, name)
sys.platform = "darwin"
import importlib, pkgutil, paralab, paralab.benchmarks, paralab.models
for room in (paralab.models, paralab, paralab.benchmarks):
    for module in pkgutil.walk_packages(room.__path__[:1], room.__name__ + "."):
        importlib.import_module(module.name)
from paralab.cli import main
words = "--strategy single --size 2x32x4v257 --seq-len 16 --steps 2 --warmup 1 --no-parity".split()
assert main(["cluster", "--nodes", "2", "--", "true"]) == 2
sys.platform = "linux"  # for torch, whose build this is
paralab.processes.glibc._OVERCOMMIT = paralab.processes.glibc.Path("nowhere")
sys.exit(main(["run", *words, "--out", {str(tmp_path / "rows.csv")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "paralab: error: paralab cluster needs Linux" in done.stderr


@pytest.mark.parametrize(("command", "name"), [("report", "r.csv"), ("plot", "r.svg")])
def test_what_is_read_is_not_written_over(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("rows\n")
    (tmp_path / f"link-{name}").symlink_to(name)
    assert cli.main([command, str(tmp_path / name), "--out", str(tmp_path / f"link-{name}")]) == 2
    assert "one of the files that are read" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "rows\n"


def test_a_link_is_written_through_and_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to("target")
    os.mkfifo(fifo)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        for place in (link, fifo):
            check_writable(place)
            write_whole(place, b"content")
        assert reader.read() == b"content"
    assert link.is_symlink() and fifo.is_fifo() and (tmp_path / "target").read_bytes() == b"content"
