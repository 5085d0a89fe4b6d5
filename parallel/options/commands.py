"""The commands of `paralab`: their names, what each does in one line, and how to start them. Imports nothing heavy."""

import sys

COMMANDS = {
    "tour": "train one model under every strategy that fits this machine, side by side",
    "run": "run one case and append its result to a CSV file",
    "verify": "prove that strategies compute what one process computes",
    "strategies": "list the strategies: layout, when to use it, what it costs",
    "check-model": "check a model against the rules that strategies rely on",
    "bench": "sweep strategies, models and sizes, repeats interleaved",
    "compare": "compare two result files, with a verdict",
    "report": "make one HTML file of result files",
    "plot": "draw result files, or training curves, into one picture",
    "peers": "compare our speed with hand-written loops and transformers",
    "elastic": "lose a node of a training and get it back, over and over",
    "soak": "hurt a training with random faults and see whether anything is lost",
    "overhead": "measure what measuring costs",
    "node": "start this machine's part of a run on several nodes",
    "cluster": "run a command on several nodes inside this machine",
    "scale": "run a case on 1, 2, 3 ... nodes of such a cluster, at several link speeds",
    "train": "train a model for real, with checkpoints",
    "export": "write the weights of a checkpoint for Hugging Face, or as safetensors",
    "import-deepspeed": "take the weights of a DeepSpeed ZeRO checkpoint",
    "generate": "write on from a prompt with a trained GPT-2",
    "sample": "draw samples from a trained denoiser",
}

# what starts `paralab` in a process of its own: the words of a command line follow
PROGRAM = (sys.executable, "-m", "parallel.cli")
