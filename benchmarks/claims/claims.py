"""The claims: each in words, where it is from, which series measure it, and the rule by which it is judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paralab.benchmarks.claims.findings import Finding, Measured
from paralab.benchmarks.claims.of_memory import (
    accumulation,
    bytes_per_parameter,
    checkpointing,
    master_weights,
    zero,
)
from paralab.benchmarks.claims.of_speed import (
    batches,
    casting,
    channels_last,
    compiled,
    nodes,
    pinned,
    workers,
)

NOTES = "course notes on distributed training"


@dataclass(frozen=True)
class Claim:
    """A claim. sources: links or words, in Markdown. judge: None of rows that lack a series.

    gpu_only: why a machine without one cannot test it; empty where it can.
    """

    title: str
    words: str
    sources: tuple[str, ...]
    series: tuple[str, ...]
    rule: str
    judge: Callable[[Measured], Finding]
    gpu_only: str = ""

    @property
    def command(self) -> str:
        return f"python -m paralab.benchmarks.claims {' '.join(self.series)}"


CLAIMS: Sequence[Claim] = (
    Claim(
        "Channels last",
        "On a CPU, images in channels-last memory format train a ResNet up to 1.8 times as fast.",
        (
            NOTES,
            "[Accelerating PyTorch vision models with channels last on CPU]"
            "(https://pytorch.org/blog/accelerating-pytorch-vision-models-with-channels-last-on-cpu/) "
            "(PyTorch blog, 2022) is about the same effect",
        ),
        ("channels-last",),
        "It holds where the whole interval is above 1 and not above 1.8.",
        channels_last,
    ),
    Claim(
        "torch.compile",
        "torch.compile makes training 30% to 200% faster.",
        (
            NOTES,
            "[the documentation of torch.compile in PyTorch 2.0]"
            "(https://github.com/pytorch/pytorch/blob/v2.0.0/docs/source/compile/index.rst): 30% to 2x",
        ),
        ("compile",),
        "It holds where the whole interval is between 1.3 and 3 times as fast.",
        compiled,
    ),
    Claim(
        "Mixed precision and the weights",
        "Mixed precision does not halve the memory of the weights: with the fp32 master copy it takes 1.5 times as "
        "much, 6 bytes a parameter.",
        ("[GPU memory usage](https://huggingface.co/docs/transformers/v5.14.0/model_memory_anatomy) (transformers)",),
        ("precision",),
        "It holds at 6 bytes; in part where the weights are not halved.",
        master_weights,
    ),
    Claim(
        "Bytes per parameter",
        "Training with Adam in mixed precision takes 20 bytes a parameter for weights, gradients and optimizer states.",
        (
            "[Distributed optimizer](https://docs.nvidia.com/megatron-core/developer-guide/latest/api-guide/"
            "dist_optimizer.html) (Megatron Core): 20 in fp16, 18 in bf16 with fp32 gradients, 16 in fp32",
        ),
        ("precision",),
        "It holds at 20 bytes; in part where that is a recipe of other programs.",
        bytes_per_parameter,
    ),
    Claim(
        "ZeRO",
        "Dividing optimizer states over N ranks (ZeRO-1) takes up to 4 times less memory for weights, gradients and "
        "optimizer states, dividing gradients too (ZeRO-2) up to 8 times, and weights too (ZeRO-3) N times.",
        ("[ZeRO](https://arxiv.org/abs/1910.02054) (Rajbhandari et al. 2019), figure 1 and section 5",),
        ("zero-on-2", "zero-on-4", "zero"),
        "A stage holds where 64 ranks save at least 90% of 4, of 8 and of 64 times, by the prediction for GPT-2 1.5b.",
        zero,
    ),
    Claim(
        "Data-loader workers",
        "Use as many data-loader workers as there are CPU cores.",
        (
            NOTES,
            "the [performance tuning guide](https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide) of "
            "PyTorch says to tune their number",
        ),
        ("workers",),
        "It holds where as many as cores are faster than none, and no other number is faster than they.",
        workers,
    ),
    Claim(
        "Pinned memory",
        "Copies to a GPU are faster from pinned (page-locked) memory, and run while the GPU computes.",
        ("the [performance tuning guide](https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide) of PyTorch",),
        ("pinned",),
        "It holds where the whole interval is above 1.",
        pinned,
        gpu_only="there is no copy to a GPU",
    ),
    Claim(
        "Casting on the device",
        "Send images as bytes and convert them to floats on the device rather than on the host.",
        (
            NOTES,
            "[FFCV](https://docs.ffcv.io/_modules/ffcv/transforms/normalize.html) converts bytes in either place",
        ),
        ("casting",),
        "It holds where the whole interval is above 1.",
        casting,
    ),
    Claim(
        "Larger batches",
        "Larger batches use the hardware better: more samples a second.",
        (
            NOTES,
            "[BatchSize](https://reference.wolfram.com/language/ref/BatchSize.html) (Wolfram Language): typically more "
            "inputs a second, for more memory",
        ),
        ("batches",),
        "It holds where each larger batch has more samples a second, by its whole interval; in part where some do.",
        batches,
    ),
    Claim(
        "Gradient accumulation",
        "Accumulating gradients over N small batches computes the same as one batch of N times the size, in less "
        "memory.",
        (
            NOTES,
            "[gradient accumulation](https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation) "
            "(Accelerate)",
        ),
        ("accumulation", "batch-norm"),
        "It holds where losses, gradient norms and every parameter are those of one process that takes the whole "
        "batch, also with batch norm; in part where that differs.",
        accumulation,
    ),
    Claim(
        "Activation checkpointing",
        "Recomputing activations takes far less memory for about 33% more compute.",
        (
            NOTES,
            "[Chen et al. 2016](https://arxiv.org/abs/1604.06174): one more forward pass",
            "[activation recomputation](https://docs.nvidia.com/nemo/megatron-bridge/latest/training/"
            "activation-recomputation.html) (Megatron Bridge): 30% for each layer",
        ),
        ("checkpointing",),
        "It holds where activations shrink, and the operations counted grow by 25 to 40%; in part where they shrink.",
        checkpointing,
    ),
    Claim(
        "Three nodes",
        "Three nodes train faster than one.",
        (NOTES,),
        ("nodes",),
        "It holds where the whole interval is above 1 on every link; in part where it is on some.",
        nodes,
    ),
)
