"""The commands of `paralab`: their names, what each does in one line, and how to start them. Imports nothing heavy."""

import sys

COMMANDS = {
    "tour": "compare all strategies that fit this machine on one model",
    "run": "measure one training run and append the result to a CSV file",
    "verify": "prove that strategies compute what one process computes",
    "strategies": "list the strategies: layout, when to use it, what it costs",
    "explain": "draw what each rank holds and sends at each moment of a step",
    "plan": "find the fastest layouts on machines you need not have",
    "predict": "predict step time and memory on machines you need not have",
    "calibrate": "measure this device, so that plan and predict know it",
    "check-model": "check a model against the rules that strategies rely on",
    "config": "print every option of a command, and where its value is from",
    "bench": "measure strategies, models and sizes in interleaved repeats",
    "compare": "compare result files and print verdicts",
    "report": "write an HTML report of result files",
    "plot": "draw result files or training curves into one picture",
    "watch": "look at a training run or a sweep while it goes on",
    "peers": "compare paralab's speed with plain torch and transformers",
    "elastic": "kill and restart a node of a training run, check the losses",
    "soak": "inject random faults into a training run, check the losses",
    "overhead": "measure how much measuring slows training down",
    "node": "start this machine's processes of a run on several nodes",
    "cluster": "run a command on a simulated cluster inside this machine",
    "scale": "measure scaling over nodes and links of such a cluster",
    "train": "train a model, with checkpoints and held-out evaluation",
    "data": "curate texts: statistics, duplicates, tokenizers",
    "optimise": "compare methods on convex functions with what theory says",
    "export": "write the weights of a checkpoint in other formats",
    "import-deepspeed": "convert the weights of a DeepSpeed ZeRO checkpoint",
    "generate": "generate text with a trained language model",
    "invert": "find a prompt after which a model writes a given text",
    "probe": "classify images by the features of a trained vicreg model",
    "anomaly": "look for a class that a vicreg model was trained without",
    "sample": "draw samples from a trained diffusion model",
}

# what starts `paralab` in a process of its own: the words of a command line follow
PROGRAM = (sys.executable, "-m", "paralab.cli")
