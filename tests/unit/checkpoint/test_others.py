"""What another program wrote is named where a checkpoint of paralab is needed."""

from pathlib import Path

import pytest

from paralab.checkpoint.loading import opened
from paralab.errors import ConfigError, DataError
from paralab.training.checks import check_resume
from paralab.training.options import TrainConfig
from paralab.weights.start_from import kind_of
from tests.unit.training.test_train import PYTHON

FOLDERS = {
    "global_step2/mp_rank_00_model_states.pt": "a checkpoint of DeepSpeed",
    "__0_0.distcp": r"a checkpoint of torch\.distributed\.checkpoint",
    "latest_checkpointed_iteration.txt": "a checkpoint of Megatron",
    "checkpoints/last.ckpt": "a checkpoint of Lightning",
    "checkpoint-2/trainer_state.json": "a checkpoint of the Trainer of transformers",
    "model.pt": r"a folder of files of torch\.save",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_program_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=f"is {FOLDERS[name]}.*: give one such as RUN/step-200"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match=f"--init-from .* is {FOLDERS[name]}.*: let its program write"):
        kind_of(tmp_path)
    with pytest.raises(ConfigError, match=f"--resume .* is {FOLDERS[name]}.*--init-from.*: give one such as"):
        check_resume(TrainConfig(out="new", resume=str(tmp_path)), PYTHON)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match="does not exist: give a Hugging Face folder"):
        kind_of(file)
    file.write_text("")
    with pytest.raises(ConfigError, match=f"is a file of weights: give its folder, {tmp_path}"):
        kind_of(file)
    with pytest.raises(DataError, match="is a file of safetensors, and no folder"):
        opened(file)
