"""Where the pieces of a sharded parameter lie."""

from collections.abc import Collection

from torch import Tensor
from torch.distributed.tensor import DTensor


def sharded_over(parameter: Tensor, dims: Collection[str]) -> int:
    """Return into how many different pieces these dims of the mesh divide a parameter, of any shape.

    A plain tensor is one piece.
    """
    pieces = 1
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        for name, size, placement in zip(mesh.mesh_dim_names or (), mesh.shape, parameter.placements, strict=True):
            if name in dims and not placement.is_replicate():
                pieces *= size
    return pieces
