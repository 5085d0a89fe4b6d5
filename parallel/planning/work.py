"""One run with nothing left open: what to train, on which data, and how both are divided."""

import shlex
from dataclasses import dataclass
from typing import Any

import torch

from paralab.axes import eight_bits
from paralab.axes.context import BuildContext, Planned
from paralab.axes.held import check_packed
from paralab.data import Compact, TextOptions, open_dataset
from paralab.data.dataset import Dataset
from paralab.errors import ConfigError
from paralab.layout import Division, Layout
from paralab.layout import strategies as named
from paralab.models.configs import ModelConfig
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.options.flags import flags_of
from paralab.processes.allowed import default_threads
from paralab.processes.mesh import Mesh, default_backend
from paralab.processes.rank import Rank


@dataclass(frozen=True)
class Work(Planned):
    """One run with nothing left open: what to train and how it is divided."""

    run: RunConfig
    spec: ModelSpec
    model_config: ModelConfig
    size: str
    layout: Layout
    division: Division

    @property
    def strategy(self) -> str:
        """The requested strategy where the layout is its, else the name of the layout."""
        return self.run.strategy or named.name_of(self.layout)

    @property
    def n_parameters(self) -> int:
        """Parameters of the whole model; a shared one counts once, padding counts."""
        return sum(p.numel() for p in self.new_model().parameters())

    @property
    def parameters_text(self) -> str:
        """How many parameters there are, in words: in millions, or one by one where these are less than a tenth."""
        n = self.n_parameters
        return f"{n / 1e6:,.1f} M parameters" if n >= 10**5 else f"{n:,} parameters"

    @property
    def command(self) -> str:
        """The line that does this work again, whatever started it: nothing in it is left to be chosen.

        What it does not say: where rows go, and how a launcher was configured.
        """
        divided = {"layout"} if self.layout.world_size == 1 else {"strategy", "nproc"}
        words = flags_of(self.run, leave_out={"out", "group", "repeat", "trace", "until_decided", *divided})
        return f"paralab run {shlex.join(words)}"

    def context(self, mesh: Mesh) -> BuildContext:
        return BuildContext(self.spec, self.model_config, self.run, self.layout, self.division, mesh, data=self.dataset)

    @property
    def data_name(self) -> str:
        """What to call the data in rows: its name, and the class that is left out of it."""
        name, held_out = self.run.data or self.spec.data(self.model_config), self.run.held_out_class
        return name if held_out is None else f"{name} without class {held_out}"

    @property
    def data_sha256(self) -> str:
        """Of the content of the training data, whatever its path. Raises: DataError."""
        return self.dataset().sha256

    def copies(self, device: torch.device) -> dict[str, bool]:
        """Return how batches get to a device (pin_memory, non_blocking): as requested, or what suits it.

        A copy to a GPU from memory that is not pinned waits for all that the GPU was told before.
        """
        asked = {"pin_memory": self.run.pin_memory, "non_blocking": self.run.non_blocking}
        return {name: device.type != "cpu" if value is None else value for name, value in asked.items()}

    def every_option(self, rank: Rank) -> dict[str, Any]:
        """Return the options of the run by name, with what will be used where nothing was given.

        None stands where an option has no use in this run. rank: a process of the run, or the one that will start them.
        """
        here = rank.local_world_size if rank.launcher != "python" else self.layout.world_size
        backend = self.run.backend or default_backend(rank.device.type)
        return {
            **vars(self.run),
            "data": self.run.data or self.spec.data(self.model_config),
            "seq_len": getattr(self.model_config, "seq_len", None),
            "norm": getattr(self.model_config, "norm", None),
            "residual": getattr(self.model_config, "residual", None),
            "tokenizer": getattr(self.model_config, "tokenizer", None),
            "threads": self.run.threads or default_threads(here),
            "backend": backend if self.layout.world_size > 1 else None,
            **self.copies(rank.device),
        }

    def dataset(self, split: str = "train") -> Dataset:
        """Open the data set of the run. split: "train" or "validation".

        Raises: DataError when it is missing or damaged; ConfigError for --cast-on-device where it has no compact form.
        """
        run = self.run
        text = TextOptions(column=run.text_column, streaming=run.streaming, max_tokens=run.max_tokens)
        name = run.data or self.spec.data(self.model_config)
        dataset = open_dataset(
            name, config=self.model_config, split=split, text=text, held_out_class=run.held_out_class
        )
        if run.cast_on_device and not isinstance(dataset, Compact):
            raise ConfigError(f"--cast-on-device with {name}, which is not stored as bytes or tokens: leave it out")
        return dataset

    def show_data(self, *splits: str) -> None:
        """Open these splits, and say what was found where this is the only process or rank 0. Raises: DataError.

        Called before any process is started, so that a data set that is missing or damaged is refused there.
        """
        found = dict.fromkeys(self.dataset(split).found for split in splits)
        if Rank.from_env().is_main:
            for note in self.spec.notes(self.model_config):
                print(f"model: {note}", flush=True)
            if self.run.optimizer == eight_bits.NAME:
                print(f"optimizer: {check_packed(self):.1%} of its moments take 8 bits, the others 32", flush=True)
            print(f"data: {'; '.join(found)}", flush=True)
