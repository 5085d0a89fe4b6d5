"""A run on a measured device as the axes are asked about it, from a model and a layout, or from a row of cases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paralab.axes import eight_bits
from paralab.axes.check import check_split
from paralab.axes.context import Planned
from paralab.errors import ConfigError, LayoutError, ModelError
from paralab.layout import Division, Layout
from paralab.models import SPECS
from paralab.models.configs import ModelConfig
from paralab.models.sizes import config_of_size
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.planning.hardware import TRAINED_PRECISIONS
from paralab.planning.settle import Settled
from paralab.planning.vocabulary import with_tokenizer

_AXES = ("dp", "tp", "pp")  # that are predicted
_TRAINED = "a measured device is predicted from the operations of a model that paralab has"


@dataclass(frozen=True)
class Imagined(Planned):
    """A run that nobody has started."""

    run: RunConfig
    spec: ModelSpec
    model_config: ModelConfig
    layout: Layout
    division: Division


def imagine(
    spec: ModelSpec, config: ModelConfig, layout: Layout, *, batch: int, accumulation: int = 1, run: RunConfig
) -> Imagined:
    """Return a run of a model under a layout. batch: samples of a step.

    Raises: LayoutError where the model cannot be split so, the batch cannot, or an axis is not predicted.
    """
    if other := [axis for axis in layout.axes if axis not in _AXES]:
        raise LayoutError(
            f"layout {layout} has {' and '.join(other)}, which a measured device is not predicted for: "
            f"use {', '.join(_AXES)}"
        )
    check_split(layout, spec=spec, config=config)
    layout.check_schedule(accumulation)
    run = replace(run, layout=layout, nproc=layout.world_size, global_batch_size=batch, accumulation=accumulation)
    return Imagined(run, spec, config, layout, layout.divide(batch, accumulation))


def of_case(settled: Settled) -> Imagined:
    """Return the run that a row of cases describes.

    Raises: ModelError for a model, LayoutError for a layout that paralab does not train.
    """
    from paralab.planning.answers import layout_text, typed_layout

    case = settled.case
    spec, config = model_of(case)
    count = round(float(case.micro_batches))
    text = layout_text({**vars(case), "layers_per_stage": settled.layers_per_stage}, count)
    layout = typed_layout(text)
    if layout is None:
        raise LayoutError(f"{text} is not what paralab trains, and {_TRAINED}: see paralab strategies")
    if case.precision not in TRAINED_PRECISIONS:
        raise ModelError(f"precision {case.precision} on a measured device: use one of {', '.join(TRAINED_PRECISIONS)}")
    if case.optimizer == eight_bits.NAME:
        raise ModelError(
            f"optimizer {eight_bits.NAME} on a measured device: how long its update takes is not measured, use adamw"
        )
    run = RunConfig(
        precision=case.precision,
        checkpointing=str(case.recompute),
        optimizer="sgd" if case.optimizer == "sgd" else "adamw",
    )
    accumulation = count if case.pp == 1 else 1
    return imagine(spec, config, layout, batch=int(case.global_batch_size), accumulation=accumulation, run=run)


def model_of(case: Any) -> tuple[ModelSpec, ModelConfig]:
    """Return the model of paralab that a case describes. Raises: ModelError where there is none."""
    sizes: Mapping[str, int] = {
        "n_layers": int(case.layers),
        "hidden": int(case.hidden),
        "n_heads": int(case.heads),
        "vocab_size": int(case.vocab),
        "seq_len": int(case.sequence_length),
    }
    plain = case.head_dim * case.heads == case.hidden and not case.experts
    gpt2 = (case.gated, case.position, case.norm, bool(case.tied_embeddings)) == (False, "learned", "layernorm", True)
    if plain and gpt2 and case.ffn == 4 * case.hidden and case.kv_heads == case.heads:
        spec = SPECS["gpt2"]
        return spec, replace(spec.config(), **sizes)
    if plain and (case.gated, case.position, case.norm) == (True, "rotary", "rmsnorm"):
        spec = SPECS["llama"]
        more = {"n_kv_heads": int(case.kv_heads), "ffn": int(case.ffn), "tied": bool(case.tied_embeddings)}
        return spec, replace(spec.config(), **sizes, **more)
    raise ModelError(
        f"{_TRAINED}: give the shape of gpt2 (not gated, learned, layernorm, tied, ffn of 4 x hidden) or llama "
        "(gated, rotary, rmsnorm)"
    )


def named(
    name: str, size: str | None, sequence_length: int | None, tokenizer: str | None = None
) -> tuple[ModelSpec, ModelConfig, list[str]]:
    """Return a model by what `--model`, `--size` and `--tokenizer` say, and those words.

    Raises: ConfigError for an unknown size, or for a length of what is no sequence; DataError for a tokenizer that
    cannot be read.
    """
    spec = SPECS[name]
    size = size or spec.default_size
    config = config_of_size(spec, size)
    config = with_tokenizer(config, tokenizer, spec, size)
    words = ["--model", name, "--size", size, *(["--tokenizer", tokenizer] if tokenizer is not None else [])]
    if sequence_length is None:
        return spec, config, words
    if not hasattr(config, "seq_len"):
        raise ConfigError(f"--seq-len with {name} {size}, which has no sequences: leave it out")
    return spec, replace(config, seq_len=sequence_length), [*words, "--seq-len", str(sequence_length)]
