"""How far off predictions of image models are, on published throughputs of ResNets that no constant was fitted on."""

import csv
from pathlib import Path

import numpy as np

from paralab.benchmarks.planner import errors as planner_errors
from paralab.planning import shapes
from paralab.planning.checked import Errors
from paralab.planning.search import search

FILE = Path(__file__).parents[1] / "results" / "planner" / "images" / "resnet.csv"
# data parallelism without ZeRO, whole micro-batches, nothing recomputed: what the sources ran
_LAYOUT = {"tp": 1, "pp": 1, "zero": 0, "recompute": "none"}


def ratios() -> tuple[np.ndarray, np.ndarray]:
    """Return measured over predicted step times (rows,), and the GPU of each row, text (rows,)."""
    found, gpus = [], []
    with open(FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            n, rows = int(row["n_gpus"]), int(row["micro_batch_size"])
            _, raw = shapes.find("resnet", row["size"])
            cluster = {"n_gpus": n, "gpu": row["gpu"], "precision": row["precision"]}
            batch = {"micro_batch_size": rows, "global_batch_size": rows * n}
            predicted_s = float(search(raw | cluster | batch | _LAYOUT).prediction.step_time_s[0])
            found.append(rows * n / float(row["images_per_s"]) / predicted_s)
            gpus.append(row["gpu"])
    return np.array(found), np.array(gpus)


def errors() -> tuple[Errors, tuple[float, float]]:
    """Return the errors over all rows, and the range that `checked.SHARE` of the ratios is in, GPUs weighted alike."""
    ratio, gpus = ratios()
    percent = 100 * np.abs(1 / ratio - 1)
    one = Errors("images", len(ratio), *(round(float(f(percent)), 1) for f in (np.mean, np.median, np.max)))
    return one, planner_errors.ranges(ratio, gpus, gpus)["all"]
