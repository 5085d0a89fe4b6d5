"""Where the logs of a run are: in a folder beside the CSV file of its row."""

import re
from hashlib import sha256
from pathlib import Path

TRAINING_ROWS, TRAINING_LOG = "runs.csv", "log"  # in the folder of a training


def log_path(csv_path: str | Path, run_id: str, rank: int) -> Path:
    """Return where one rank of a run keeps its log: a folder beside the CSV file that is named like it."""
    return Path(csv_path).with_suffix("") / f"{safe_name(run_id)}.rank{rank}.jsonl"


def log_paths(csv_path: str | Path, run_id: str) -> list[Path]:
    """Return the logs of a run that exist, in order of rank. Those of a training lie in its folder, as its rows do."""
    folder = Path(csv_path).parent
    if Path(csv_path).name == TRAINING_ROWS and (folder / TRAINING_LOG).is_dir():
        return training_logs(folder)
    name = safe_name(run_id)
    found = Path(csv_path).with_suffix("").glob("*.jsonl")
    ranks = {path: re.fullmatch(rf"{re.escape(name)}\.rank(\d+)\.jsonl", path.name) for path in found}
    return [path for _, path in sorted((int(match[1]), path) for path, match in ranks.items() if match)]


def training_logs(folder: Path) -> list[Path]:
    """Return the logs of the ranks of a training that exist in its folder, in order of rank."""
    found = ((re.fullmatch(r"rank(\d+)\.jsonl", path.name), path) for path in (folder / TRAINING_LOG).glob("*.jsonl"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def safe_name(text: str) -> str:
    """Return a file name for any text: itself where that is harmless, otherwise cleaned and told apart by a hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
        return text
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{cleaned or 'run'}-{sha256(text.encode(errors='surrogatepass')).hexdigest()[:10]}"
