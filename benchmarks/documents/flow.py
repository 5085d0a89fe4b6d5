"""The way of one step through the code, from the command line to a verdict: which function does what, in order."""

from dataclasses import dataclass

FLOW_HEAD = """\
## One step, from the command line to a verdict

What happens to `paralab run --strategy zero3 --nproc 4`. The axes hand the engine parts, an optimizer and callables: it
never asks which layout it runs. A test runs a case, and these functions have to be called in the order of the table.

| step | what happens | where | what it hands on |
|---|---|---|---|"""


@dataclass(frozen=True)
class Stage:
    """A part of the way of one step. functions: `path:name`, in the order of their first calls."""

    what: str
    functions: tuple[str, ...]
    gives: str


FLOW = (
    Stage(
        "the command is found",
        ("parallel/cli.py:main", "benchmarks/run.py:main"),
        "its words; torch is not imported yet",
    ),
    Stage(
        "flags go over a file, the file over defaults",
        ("parallel/options/flags.py:read",),
        "`RunConfig`: every option, checked by itself; None where it is left open",
    ),
    Stage(
        "what is left open is chosen, and all of it checked together",
        ("benchmarks/run_start.py:run", "parallel/planning/resolve.py:resolve", "parallel/planning/fit.py:check"),
        "`Work`: model config, layout, division of the batch, engine; refused here is what cannot run or cannot fit",
    ),
    Stage(
        "processes are started, or are there already, and meet",
        (
            "parallel/running/task.py:start",
            "parallel/processes/launch.py:launch",
            "parallel/processes/cluster.py:join",
        ),
        "in each process its `Rank`, and the process group of the run",
    ),
    Stage(
        "each rank finds its place",
        (
            "benchmarks/run_worker.py:measure",
            "parallel/running/task.py:on_rank",
            "parallel/processes/mesh.py:make_mesh",
        ),
        "`Mesh`: the ranks as a grid with the dims of the axes that the layout uses",
    ),
    Stage(
        "an engine is built (before that, parity builds one of its own and one for the reference)",
        ("benchmarks/case/run.py:run_case", "parallel/engines/__init__.py:build", "parallel/axes/compose.py:compose"),
        "the way to what follows; DeepSpeed and Accelerate build theirs from the same pieces",
    ),
    Stage(
        "the model is made on the meta device (`Planned.new_model`), and the axes cut it",
        ("parallel/axes/compose.py:build_part",),
        "of a plain `nn.Module` that knows nothing of ranks this rank's parts: stages, then split layers, recomputed "
        "and compiled blocks, then shards",
    ),
    Stage(
        "the parts get their values",
        ("parallel/axes/initialise.py:initialise",),
        "the piece that this rank holds of each parameter, drawn from the seed and the name",
    ),
    Stage(
        "batches are loaded",
        ("parallel/planning/batches.py:training_batches",),
        "for each step this rank's rows of the global batch",
    ),
    Stage(
        "a step is taken, and timed",
        (
            "benchmarks/case/steps.py:timed_steps",
            "parallel/engines/native.py:NativeEngine.step",
            "parallel/engines/native.py:NativeEngine._over_ranks",
            "parallel/engines/native.py:NativeEngine._clip",
            "parallel/engines/native.py:NativeEngine._update",
        ),
        "`StepResult`: loss and gradient norm, equal on every rank: forward and backward, gradients finished, one "
        "all-reduce of two numbers, clipping, update",
    ),
    Stage(
        "each rank writes its log",
        ("parallel/records/log.py:StepLog.write",),
        "a line for each step and each pass of a pipeline, and one for its memory",
    ),
    Stage(
        "bytes, memory and waiting are looked at, in steps that are not timed",
        ("benchmarks/case/inside.py:look_inside",),
        "`RankResult` of each rank",
    ),
    Stage(
        "every rank makes the same row of what all ranks measured",
        ("benchmarks/case/run.py:_gather", "benchmarks/case/row.py:record_of"),
        "`RunRecord`: slowest time, largest memory, mean utilisation",
    ),
    Stage(
        "the row goes to a file",
        ("parallel/records/writing.py:append",),
        "a line of a CSV file, on disk",
    ),
    Stage(
        "another command compares rows",
        (
            "benchmarks/report/compare.py:main",
            "benchmarks/report/sources.py:load",
            "benchmarks/report/comparing.py:compare_files",
        ),
        "a verdict, or that there is too little evidence for one",
    ),
)
