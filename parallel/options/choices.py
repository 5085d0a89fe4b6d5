"""The words that options take, each set declared once: a type for the checker, and the choices of the flag from it."""

from typing import Literal

EngineName = Literal["torch", "deepspeed", "accelerate"]
EngineChoice = Literal["auto", EngineName]
OptimizerName = Literal["adamw", "sgd", "adamw8bit"]
LrSchedule = Literal["cosine", "constant"]
Precision = Literal["fp32", "bf16", "fp16", "fp64"]
CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Backend = Literal["gloo", "nccl"]
GradCompression = Literal["none", "bf16", "fp16", "powersgd", "int8"]
# by problem of `paralab optimise`; none of them trains a model that is not convex
CONVEX_METHODS = {
    "logistic": ("gd", "sgd", "minibatch", "svrg", "newton"),
    "signal": ("subgradient", "ista", "fista"),
    "images": ("subgradient", "ista", "fista"),
}
TRANSFORMS = ("dct", "haar")
OuterOptimizer = Literal["average", "nesterov"]
