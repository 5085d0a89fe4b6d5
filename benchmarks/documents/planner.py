"""The page docs/planner.md: contract, model, constants and errors of the planner, from where each is declared."""

from collections.abc import Iterator
from pathlib import Path

from paralab.benchmarks.planner import compared as planner_compared
from paralab.benchmarks.planner.compared import by_layout, by_model
from paralab.benchmarks.planner.errors import table
from paralab.commands.predict import HEADER
from paralab.planning import checked
from paralab.planning.columns import COLUMNS, IGNORED
from paralab.planning.constants import described
from paralab.planning.measured import device

HEAD = """\
# Predicting step time and memory

Made by `python -m paralab.benchmarks.documents planner` from the code, the fitted constants and the errors that
`python -m paralab.benchmarks.planner.errors --write` measured. A test fails when it is stale.

    paralab predict CASES.csv --out PREDICTIONS.csv

A case is a row of a CSV file: model, cluster, layout, recipe. Predictions are closed forms over these: nothing is
run, and no device is needed. `--tokenizer FILE` gives rows that leave `vocab` empty the vocabulary of a tokenizer, as
it gives it to the model of `paralab plan`. The same case gives the same prediction whatever else is in the file. A row
that cannot be predicted is reported with its line and written without numbers, the others are predicted, and the exit
status is 1.

A device of your own is described by figures of its datasheet, or by what differs from a known one (`"like":
"H100-SXM-80GB"` in a JSON file):

    paralab predict CASES.csv --device gpu=mine,peak_tflops=100,memory_gib=24,memory_gbyte_per_s=900
    paralab predict CASES.csv --device mine.json

## A device that was measured

    paralab calibrate --seconds 20 --out device.json
    paralab plan --model resnet --size 20 --gpu device.json --n-gpus 2
    paralab predict CASES.csv --gpu device.json

`paralab calibrate` times single operations of several sizes in this machine's processes, in several turns: with as many
threads as each has, while as many processes as fill the cores do the same; all-reduces over 2, 4, ... processes, each
after some work; messages; and what DistributedDataParallel, FSDP, DTensor and the stages of a pipeline add on the host.
A file is taken wherever a GPU is named, also in the column `gpu`. No constant below has a part in these predictions,
and they change none: the modules that a rank of the layout has go forward and backward on tensors without values, and
each operation takes as long as those measured with sizes near its own. Every model that paralab has is predicted so,
also in fp32; a row of cases has to have the shape of GPT-2 or Llama.

- Processes beyond the cores share them: computing takes as many times as long. Nothing overlaps.
- The passes of a pipeline wait for each other as its schedule orders them, and share cores with those that work.
- A collective takes what an all-reduce of as many bytes on the wire took. Ranks on several machines (`gpus_per_node`
  below `n_gpus`) take no less than their bytes need on the network (`inter_node_gbit_per_s`).
- `memory_gib` is that of the tensors of the fullest rank; all processes of a machine have to fit into it together.
- Dividing sequences or experts over ranks is not predicted, and is refused.

Three or more rows of one's own, measured on that device, correct step times by one factor, and each row says how far
off a factor from the others is:

    paralab plan --model gpt2 --gpu device.json --n-gpus 2 --calibrate-from runs/results.csv

### How far off it is on a machine

    python -m paralab.benchmarks.planner.here --write compared.csv

measures it: layouts of GPT-2, ResNet and DiT on 1, 2 and 4 processes, compared with what a calibration of the machine
says. It needs a machine that does nothing else. Figures of {here_date}, on {here_processor} with {here_cores} cores,
torch {here_torch}, in fp32, of {here_runs} runs beside which other programs took less than a tenth of a core
(`{here_file}`). The calibration was made apart from them; beside it other programs took
{here_others} cores. Times and bytes were measured then; predictions are what the code makes of that calibration today:

{here_by_model}

No constant was fitted to these figures, but what is measured, and how, was chosen with them in view: other models and
machines will be predicted less well. {here_longer} of {here_layouts} layouts took longer than predicted. The median of
few runs counts, on a virtual machine whose speed changes: the same layout took up to {here_spread:.0%} longer in one
run than in another. The peak of the tensors of the fullest rank is off by {here_memory:.1%} at most.

{here_by_layout}

## The fastest layout

    paralab plan --model llama --size 8b --gpu H100-SXM-80GB --n-gpus 64
    paralab plan --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --n-gpus 256 --out plan.json --report plan.html
    paralab plan --model resnet --size 50 --n-gpus 8
    paralab plan QUESTIONS.csv --out PLANS.csv

Every legal layout is predicted, at {rate} or more a second, and those that fit come first, fastest first. Where none
fits, it says by how much, and what would: more GPUs, or what lies in the memory of the host (optimizer states; all
states, as FSDP has them; activations). Copies to the host and back then take PCI Express as wide as the generation of
the device has it, and the host updates the weights (`host_link_share`, `host_weight_s`).

Hundreds of layouts are alike: of those with the same degrees, ZeRO stage, micro-batch and recomputation the simplest
within 1% of the fastest is shown, and one of each choice of degrees before any other; a file of questions gets up to
1,000. First comes, of all within 1% of the fastest, the one with fewest axes and words, since no prediction tells these
apart; the table says which others would be faster. Any micro-batch up to 1,024 that divides a data rank's share is
looked at, and tensor ranks that divide the heads of keys and the MLP, as `paralab run` asks; selective recomputation
where it frees memory: flash attention keeps no scores. Where `framework` names other software than PyTorch's, its
schedules and ZeRO stages are looked at. What is legal is what `torch.distributed.pipelining` and the published recipes
allow: what `paralab run` does not train is among it, and the line that is printed to be typed is that of the fastest
layout that it does. It trains all of these layouts but the schedule `zb-h2`, which `torch.distributed.pipelining` does
not have, and the table marks those, answers to a file in `trained_by_paralab`. Fewer layers in the first and the last
stage (`firstN`, `lastN`) are looked at where the embedding and the output layer make those heavier.

*8 in 10* is the range that held 80% of what was measured where predictions were checked, on devices of the same
generation, every table weighted alike and left out of the fit: {ranges}. Where no batch is given, half a million
tokens a step are taken (256 images), as many for each GPU.

`--tokens`, `--days`, `--budget-usd` and `--price-per-gpu-hour` add the arithmetic of a whole training. What is solved
for follows from what is given:

| given | solved for |
|---|---|
| `--tokens` (20x: 20 a weight, Hoffmann et al. 2022), `--n-gpus` | days, device-hours; with a price, dollars |
| `--days`, `--n-gpus` | tokens |
| `--budget-usd`, the price, `--n-gpus` | tokens |
| `--days`, `--tokens` | the fewest GPUs, of powers of two and what lies between |
| `--days`, `--budget-usd`, the price | GPUs and tokens |

`--report` draws throughput against memory, the memory by category, the step time by cause, scaling from one node on,
and that arithmetic into one file that opens offline.

**Other models than transformers of texts** (ResNet, diffusion, modules in files of one's own) run once on the meta
device, where tensors have no values. What each block takes is counted there: FLOPs of products and convolutions,
elements that other operations move, elements that backward needs, launches. The same constants then make seconds of
it. On `benchmarks/results/planner/images/resnet.csv`, {images} published trainings of ResNets that no constant was
fitted on, step time was off by {images_mean:.1f}% on average (median {images_median:.1f}%, worst {images_worst:.0f}%);
their memory was not published, and no published run time of diffusion transformers was looked at.

## How far off it is

Each table was left out of the fit that its predictions come from. Mean, median and worst are errors of one case in
percent of what was measured. Kendall tau compares the order of four or more layouts of one model, batch and number of
GPUs (1: the same order); regret is how much slower the layout predicted to be fastest was than the fastest one. The
last column is what a simple prediction has: FLOPs over a constant share of the peak, fitted in the same way.

**Step time**

{step_time}

**Memory**

{memory}

What the constants may be (their priors and bounds, below), and which mechanisms the model has, was chosen with all
tables in view: a table that nobody has looked at will be predicted less well than these.

The constants that are shipped were fitted on all tables together. Their errors on the same tables, which say less:

**Step time, shipped constants**

{step_time_shipped}

**Memory, shipped constants**

{memory_shipped}

In bigscience_v100_1b3 larger micro-batches ran out of memory well before what the table says: it seems to be that of
one pipeline rank, and not of the fullest. So `fits` is judged on the safe side, with more for the loss than
`memory_gib` has.

`benchmarks/results/planner/README.md` says where the tables are from and what to distrust in them.

## The model

**Step.** (micro-batches) x (slowest pipeline rank) + (the other ranks' time) x (share of the bubble that the schedule
leaves) + messages between stages + what the data axis does once + the optimizer's update. The slowest rank counts,
not the average: the first one has the embedding, the last one the output layer and the loss. So does the slowest
message, which goes over the network where any two neighbours are on different nodes.

**A rank.** The smooth maximum of what the device and the host take for a micro-batch. The host launches a layer in a
time that belongs to the software (`host_*`), which small models wait for: that of 2021 where attention keeps its
scores, except on devices whose nodes came later (Hopper, Blackwell, CDNA3).

**A layer on the device.** Matrix products at the share of the peak that the device sustains (`share_*`, by generation
and by the watts it has for a FLOP), never faster than their weights are read; the attention core, as scores that are
written to memory or as a flash kernel; element-wise operations by the bytes that they move. Backward takes two
products for each, and with recomputation a second forward pass, its communication included. A micro-batch's gradients
are added to those before it by operations of their own, in Megatron-Core by the products that make them. What
products take in 8 bits is cast, and with sequence parallelism cast before it is gathered.

**Splitting.** What each axis adds stands with it: two all-reduces of a layer in each direction for tensor ranks
(`parallel/axes/tensor/cost.py`), gathers and reductions of ZeRO (`parallel/axes/data/cost.py`), bubble and messages
(`parallel/axes/pipeline/cost.py`), keys and values round a ring or heads exchanged
(`parallel/axes/context_parallel/cost.py`), tokens on the way to experts (`parallel/axes/expert/cost.py`). A group
that leaves the node has the network of all its ranks inside a node together; tensor ranks that do hide nothing behind
products, since what overlaps reads the memory of its neighbours over fast links. ZeRO-2 and 3 reduce gradients after
every micro-batch, except in a pipeline, where PyTorch keeps whole gradients and what it has gathered until the last
one: they need as much memory there as ZeRO-1. Experts are divided over expert ranks and each over tensor ranks; where
expert ranks are more than data ranks, tensor ranks have whole experts too. Shared experts (`shared_ffn`) are a dense
MLP beside them. Layers without experts have one of width `ffn`: the first ones (`dense_layers`), and behind these all
but every n-th (`experts_every`); each pipeline rank takes what its own layers take. No row below says so of its model.

**Memory.** States by precision and ZeRO stage; activations as in Korthikanti et al. 2022 times the micro-batches in
flight on each rank; logits on the last stage, or the layer at work; what ZeRO-2 and 3 have whole; buckets; then
fragmentation (reserved), context and communicators (device). The fullest rank counts. Of a model that `--model` names
it is the memory of `paralab run` (framework paralab): weights in fp32 and what is cast of them, norms in fp32, logits a
chunk at a time, gradients from the first backward pass on. `paralab plan --check` compares it with a dry run. Schedules
that split the backward pass (zb-*, zbv) keep what is recomputed until the gradients of weights are made, which takes
back most of what full recomputation saves; in PyTorch, whose autograd frees nothing between the halves, also the
gradients that the second one needs, in other software as much as their papers say.

**MFU.** (6 N + 12 layers x hidden x sequence) x tokens / (step time x GPUs x dense peak of the datasheet in the
precision of the case); N counts a tied embedding once, and of a mixture of experts those in use. Attention counts in
full, as is usual, though kernels leave out the half that a causal mask hides: long sequences show a higher MFU than
the device has a share of its peak in use. `paralab plan` then says what it is without that half.

## What it does not know

- Devices without a table here (AMD, TPU, Ada, Turing, Blackwell) have a sustained share that comes from single
  operators or from a guess; the constants below say which.
- Software beyond what the columns say: versions, kernels of one framework, how 8-bit products are scaled. Cases that
  differ only there get one prediction, and were measured up to 35% apart.
- Congestion, topology beyond node and network, slow nodes, data loading and checkpoints.
- Attention whose queries, keys and values are more than one product (latent attention): that of as many heads counts.
- Experts that tensor ranks divide besides (`dp2.ep2.tp2`: the published recipes leave them whole there, and so do these
  formulas); imbalance between experts beyond a constant.
- Memory that an allocator keeps from earlier steps, and workspaces of single kernels.
"""


def page() -> str:
    """Return the page."""
    kinds = ("step_time", "memory", "step_time_shipped", "memory_shipped")
    errors = {kind: "\n".join(table(checked.errors(kind))) for kind in kinds}
    (images,) = checked.errors("images").values()
    of_images = {
        "images": images.cases,
        "images_mean": images.mean_percent,
        "images_median": images.median_percent,
        "images_worst": images.worst_percent,
    }
    head = HEAD.format(**errors, **of_images, **_here(), ranges=_ranges(), rate="100,000")
    return "\n".join([head, _contract(), *_constants()]) + "\n"


def _here() -> dict[str, object]:
    """Return what the comparison with a measured machine says, and where and when it was made."""
    layouts = planner_compared.read(planner_compared.PUBLISHED)
    of = layouts[0]
    where: dict[str, object] = {
        "here_date": of.date,
        "here_processor": of.processor,
        "here_cores": of.cores,
        "here_torch": of.torch,
    }
    tables = {"here_by_model": by_model(layouts), "here_by_layout": by_layout(layouts)}
    file = planner_compared.PUBLISHED.relative_to(Path(planner_compared.__file__).parents[2])
    where["here_others"] = device.read(planner_compared.CALIBRATION).others_cores
    where |= {"here_longer": sum(one.error < 0 for one in layouts), "here_layouts": len(layouts)}
    where |= {"here_runs": sum(one.runs for one in layouts), "here_spread": max(one.spread for one in layouts)}
    where["here_memory"] = max(abs(one.memory_error or 0.0) for one in layouts)
    return where | {name: "\n".join(lines) for name, lines in tables.items()} | {"here_file": file}


def _ranges() -> str:
    """Return the ranges of step times by generation, in words."""
    found = {name: checked.step_time_range(name) for name in ("Volta", "Ampere", "Hopper", "all", "images")}
    names = {"all": "others", "images": "models of images"}
    return ", ".join(f"{names.get(name, name)} {low:.2f} to {high:.2f}" for name, (low, high) in found.items())


CONTRACT = """\
## The columns of a case

Every column may be left out, and every cell empty, apart from those that are needed. What was taken for an empty cell
stands in the column `assumed` of the predictions. An unknown column is an error; `measured_*`, {ignored}
may be there and are not read.

| column | holds | where it is empty |
|---|---|---|
{rows}

Predictions have the columns {header}. step_time_s: seconds of one optimizer step, also where it
does not fit. memory_gib: GiB (2^30) of the fullest device. fits: true or false. bound: what most of the time goes into
(host, compute, memory bandwidth, link, bubble).

## The constants

Fitted on all tables alike, each held near what was known of it before (its prior), and within bounds. Rows whose source
leaves a part of the configuration open count half. Memory is also fitted to what is known to have run: it may not be
predicted above the device.
"""


def _contract() -> str:
    rows = "\n".join(f"| `{column.name}` | {column.meaning} | {column.empty} |" for column in COLUMNS)
    ignored, header = (", ".join(f"`{name}`" for name in names) for names in (IGNORED, HEADER))
    return CONTRACT.format(rows=rows, ignored=ignored, header=header)


def _constants() -> Iterator[str]:
    yield "| constant | value | prior | bounds | unit | meaning | source of the prior |"
    yield "|---|---:|---:|---|---|---|---|"
    for name, one in described().items():
        bounds = f"{one.low:.3g} to {one.high:.3g}"
        numbers = f"{one.value:.3g} | {one.prior:.3g} | {bounds}"
        yield f"| `{name}` | {numbers} | {one.unit} | {one.meaning} | {one.source} |"
