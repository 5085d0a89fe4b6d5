"""The state of a DeepSpeed engine as the same named chunks that every other engine has.

ZeRO cuts its flat buffers where a rank's share ends, in the middle of a row as well: no box of the full tensor is such
a piece. So parameters and optimizer states are gathered whole, one at a time, and each rank keeps those of its
parameters: every dp-th one. Loading goes the other way: a rank reads its parameters and sends them to all the others.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from paralab.engines.deepspeed import ZeroEngine
from paralab.engines.state import Chunks, Shapes, whole


def gathered_chunks(engine: ZeroEngine) -> Chunks:
    """Return what this rank writes: its parameters with their states, in host memory, and the buffers. Collective."""
    state: dict[str, Any] = next(iter(_optimizer(engine).state.values()), {})
    slots = sorted(slot for slot, value in state.items() if isinstance(value, Tensor))
    chunks = _buffer_chunks(engine)
    _link_states(engine)
    for position, (name, parameter) in enumerate(engine.parameters()):
        origin, mine = _origin(engine, name), _owner(engine, position) == engine.context.mesh.rank("dp")
        for slot in (None, *slots):
            tensor = parameter if slot is None else _whole_state(engine, parameter, slot)
            if mine:
                chunks[_key(origin, slot)] = [whole(tensor.detach().to("cpu", copy=True))]
    return chunks


def new_gathered_chunks(engine: ZeroEngine, saved: Shapes) -> Chunks:
    """Return tensors for what this rank reads of a checkpoint: its parameters with their states, and the buffers."""
    chunks = _buffer_chunks(engine)
    for position, (name, parameter) in enumerate(engine.parts[0].named_parameters()):
        if _owner(engine, position) == engine.context.mesh.rank("dp"):
            origin = _origin(engine, name)
            # Stage 3 leaves an empty tensor where a parameter was.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            chunks[_key(origin, None)] = [whole(torch.empty(shape, dtype=parameter.dtype))]
            for slot in _slots(saved, origin):
                shape, dtype = saved[_key(origin, slot)]
                chunks[_key(origin, slot)] = [whole(torch.empty(shape, dtype=dtype))]
    return chunks


@torch.no_grad()
def take_chunks(engine: ZeroEngine, chunks: Chunks, saved: Shapes) -> None:
    """Give all ranks what each of them read. Collective."""
    owners = {name: _owner(engine, i) for i, (name, _) in enumerate(engine.parts[0].named_parameters())}

    def received(name: str, slot: str | None = None) -> Tensor:
        key, device = _key(_origin(engine, name), slot), engine.context.device
        if key in chunks:
            tensor = chunks[key][0].data.to(device)
        else:
            shape, dtype = saved[key]
            tensor = torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(tensor, group=engine.context.mesh.world, group_src=owners[name])
        return tensor

    engine.set_parameters(received)
    _empty_states(engine, saved)
    for name, parameter in engine.parts[0].named_parameters():
        for slot in _slots(saved, _origin(engine, name)):
            _set_state(engine, parameter, slot, received(name, slot))


def _optimizer(engine: ZeroEngine) -> torch.optim.Optimizer:
    """Return torch's optimizer. Under ZeRO it updates this rank's share of flat buffers, not the parameters."""
    return engine.optimizers[0]


def _updated(engine: ZeroEngine) -> list[Tensor]:
    """Return what the optimizer updates on this rank."""
    if engine.stage == 0:
        return list(engine.parts[0].parameters())
    zero = engine.engine.optimizer
    return zero.fp32_partitioned_groups_flat if engine.stage == 3 else zero.single_partition_of_fp32_groups


def _whole_state(engine: ZeroEngine, parameter: Tensor, slot: str) -> Tensor:
    """Return what the optimizer remembers of one parameter. A count of steps is the same for all. Collective."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = _optimizer(engine).state
    value = state[parameter if engine.stage == 0 else _updated(engine)[0]][slot]
    return value if engine.stage == 0 or value.ndim == 0 else safe_get_full_optimizer_state(parameter, slot)


def _empty_states(engine: ZeroEngine, saved: Shapes) -> None:
    """Make the optimizer forget everything and give it zeros for what a checkpoint has."""
    counts = {key.rpartition(".")[2]: not shape for key, (shape, _) in saved.items() if key.startswith("optimizer.")}
    state = _optimizer(engine).state
    state.clear()
    for tensor in _updated(engine) if counts else ():
        like = tensor.detach()
        state[tensor] = {
            slot: torch.zeros((), device=like.device) if is_count else torch.zeros_like(like)
            for slot, is_count in counts.items()
        }
    _link_states(engine)


def _link_states(engine: ZeroEngine) -> None:
    """Tell DeepSpeed where the states of each parameter are.

    It does so itself once the first of its groups has been updated, when the others have no states yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.stage in (1, 2):
        zero = engine.engine.optimizer
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _set_state(engine: ZeroEngine, parameter: Tensor, slot: str, full: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    states = _optimizer(engine).state
    if engine.stage == 0:
        states[parameter][slot].copy_(full)
    elif full.ndim == 0:
        for state in states.values():
            state[slot].copy_(full)
    elif engine.stage < 3:
        safe_set_full_optimizer_state(parameter, full, slot)
    else:  # its own cutting of whole tensors fails where ranks do not divide one
        share: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        mesh = engine.context.mesh
        flat = pad(full.flatten(), (0, share * mesh.size("dp") - full.numel()))
        safe_set_local_optimizer_state(parameter, flat[share * mesh.rank("dp") :][:share], slot)


def buffers_of(engine: ZeroEngine) -> dict[str, Tensor]:
    """Return the persistent buffers by name: of whole shapes, on every rank."""
    (part,) = engine.parts
    parameters = dict(part.named_parameters(remove_duplicate=False))
    return {name: tensor for name, tensor in part.state_dict().items() if name not in parameters}


def _buffer_chunks(engine: ZeroEngine) -> Chunks:
    """Return the buffers, to be read or written in place."""
    return {f"model.{name}": [whole(tensor)] for name, tensor in buffers_of(engine).items()}


def _owner(engine: ZeroEngine, position: int) -> int:
    return position % engine.context.mesh.size("dp")


def _origin(engine: ZeroEngine, name: str) -> str:
    return engine.context.tied.get(name, name)


def _key(name: str, slot: str | None) -> str:
    return f"model.{name}" if slot is None else f"optimizer.{name}.{slot}"


def _slots(saved: Shapes, name: str) -> Iterator[str]:
    """Yield what a checkpoint has of the optimizer's memory of a parameter, in the same order on every rank."""
    prefix = _key(name, "")
    return (key.removeprefix(prefix) for key in sorted(saved) if key.startswith(prefix))
