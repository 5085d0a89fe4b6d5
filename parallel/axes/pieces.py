"""Modules of which a rank holds pieces of the parameters, and that run on these alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor


def distribute(module: nn.Module, shard_dims: Mapping[str, int | None], device_mesh: DeviceMesh) -> None:
    """Replace parameters and buffers by DTensors split along a dim, or whole for None. Nothing is sent: they hold no
    values yet."""
    for name, dim in shard_dims.items():
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        placement = Replicate() if dim is None else Shard(dim)
        split = distribute_tensor(tensor, device_mesh, [placement], src_data_rank=None)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, nn.Parameter(split, requires_grad=tensor.requires_grad))
        else:
            module.register_buffer(name, split)


def run_locally(module: nn.Module, *, gradients: tuple[Placement, ...] | None = None) -> None:
    """Let forward see the local pieces of the module's DTensors; autograd carries gradients back to them.

    gradients: how those of the ranks belong together, where it is not as the pieces do.
    """
    kept: dict[str, Tensor] = {}
    stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # forward sees what is in there

    def swap_in(_: nn.Module, inputs: Any) -> None:
        for store in stores:
            for name, tensor in store.items():
                if isinstance(tensor, DTensor):
                    kept[name], store[name] = tensor, tensor.to_local(grad_placements=gradients)

    def swap_out(_: nn.Module, inputs: Any, output: Any) -> None:
        for store in stores:
            for name in store.keys() & kept.keys():
                store[name] = kept.pop(name)

    module.register_forward_pre_hook(swap_in)
    module.register_forward_hook(swap_out, always_call=True)
