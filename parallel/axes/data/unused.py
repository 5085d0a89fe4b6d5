"""Parameters that get no gradient in a step, where FSDP reduces them.

FSDP gives zeros to a parameter that has no gradient on this rank (`set_reduce_scatter_unused_params`), so that data
ranks reduce the same tensors whatever each of them used. Hooks tell what has a gradient from what is zeros by then.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from paralab.axes.blocks import block_of, blocks_of
from paralab.axes.data.ranks import replica_dim
from paralab.errors import ConfigError
from paralab.processes.mesh import Mesh


class Unused:
    """Notes which parameters of a sharded model get a gradient, and settles what happens with the others.

    allowed: whether a step may leave parameters without one: those that have none on any data rank keep none.
    """

    def __init__(self, part: nn.Module, *, mesh: Mesh, allowed: bool) -> None:
        assert isinstance(part, FSDPModule)
        self.part, self.mesh, self.allowed = part, mesh, allowed
        self.used: set[str] = set()  # of this rank, in this step
        self.ran: set[int] = set()  # blocks, in this forward pass
        self.watched: set[int] = set()
        part.set_reduce_scatter_unused_params(True)
        names = {id(module): name for name, module in part.named_modules()}
        for number, block in blocks_of(part).items():
            block.register_forward_pre_hook(self._before(number, f"{names[id(block)]}."))
        part.register_forward_pre_hook(self._before(None, ""))
        part.register_forward_hook(self._after)

    def _before(self, block: int | None, prefix: str) -> Callable[[nn.Module, object], None]:
        """Return what to do before a block runs, or before all else: its parameters are gathered by then."""
        blocks: Sequence[str] = self.part.block_names  # type: ignore[assignment]  # an attribute of ours

        def note(module: nn.Module, inputs: object) -> None:
            self.ran = set() if block is None else self.ran | {block}
            for name, parameter in module.named_parameters():
                if block is not None or block_of(name, blocks) is None:
                    self._watch(prefix + name, parameter)

        return note

    def _watch(self, name: str, parameter: Tensor) -> None:
        if parameter.requires_grad and id(parameter) not in self.watched:
            self.watched.add(id(parameter))
            parameter.register_post_accumulate_grad_hook(lambda _: self.used.add(name))

    def _after(self, module: nn.Module, inputs: object, output: object) -> None:
        """Raise ConfigError for a block that did not run: the other data ranks gather it in turn."""
        left_out = sorted(blocks_of(self.part).keys() - self.ran)
        if left_out:
            name = self.part.block_names[left_out[0]]  # type: ignore[index]
            raise ConfigError(
                f"{name} did not run in this step, and under zero2 and zero3 all ranks gather every block in turn: run "
                "every block on every rank, or use zero1 or ddp"
            )

    def __call__(self) -> None:
        """Have gradients complete, or none. Collective over the data ranks where some may be missing."""
        parameters = {name: p for name, p in self.part.named_parameters() if p.requires_grad}
        missing = [name for name in parameters if name not in self.used]
        if missing and not self.allowed:
            raise without_gradient(missing[0])
        if self.allowed:
            self._drop_unused(parameters)
        self.used.clear()

    def _drop_unused(self, parameters: Mapping[str, Tensor]) -> None:
        there = torch.tensor([name in self.used for name in parameters], dtype=torch.uint8, device=self.mesh.device)
        dist.all_reduce(there, op=dist.ReduceOp.MAX, group=self.mesh.group(replica_dim(self.mesh.layout)))
        for parameter, somewhere in zip(parameters.values(), there.tolist(), strict=True):
            if not somewhere:
                parameter.grad = None


def without_gradient(name: str) -> ConfigError:
    """Return what to say of a parameter that has no gradient, which the other data ranks wait for."""
    return ConfigError(
        f"{name} has no gradient in this step, and data ranks wait for it: requires_grad_(False) is for one that is "
        "never trained; where a step may leave some out, paralab.parallelize takes unused_parameters=True"
    )
