"""The reference beside the notes of all ranks: it takes the same step in one process, and compares as it goes.

The global batch is taken a rank's micro-batch at a time, so that what a module gives can be compared with what that
rank noted. Where a model has statistics over the samples of all data ranks, these are taken together, and a rank's rows
are cut out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from paralab import engines
from paralab.axes import finishing_order, used
from paralab.data.dataset import Batch
from paralab.engines.native import NativeEngine
from paralab.layout import Layout
from paralab.parity.listening import BACKWARD, CLIP, UPDATE, Listener, Spot, finished, tell_moments
from paralab.parity.marks import Mark, Marked, Place, cut, gap, length, mark
from paralab.parity.notes import Notes
from paralab.parity.reference import reference_work
from paralab.parity.sends import Sends
from paralab.parity.watching import Narrowed
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh

START, BATCH, FORWARD, BACKWARDS, GRADIENT, NUMBER, CLIPPED, UPDATED, SHARED, END = range(10)


@dataclass(frozen=True)
class Pair:
    """What one rank has beside what the reference has.

    phase: of the step. place: where in the phase, in the order of the reference. about: a spot, the name of a tensor,
    or (moment, name) of a gradient. gap, size: root mean squares of the difference, and of what the reference has.
    kind: of those that it is compared with where it is all but zero.
    """

    phase: int
    place: int
    about: "Spot | str | tuple[str, str]"
    kind: str
    rank: int
    gap: float
    size: float
    micro_batch: int | None = None


class Beside:
    """The reference of a work, taking the steps that all ranks have noted."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.layout = work, work.layout
        self.chunks, self.dp = work.division.chunks, work.layout.dp
        self.together = work.spec.statistics_over(work.model_config) == "global"
        alone, passes = reference_work(work), self.chunks * (1 if self.together else self.dp)
        division = Layout().divide(passes, passes)  # the rows are those of each batch
        alone = replace(alone, run=replace(alone.run, accumulation=passes), division=division)
        built = engines.build(alone.context(Mesh(Layout(), device)), "torch")
        assert isinstance(built, NativeEngine)
        self.engine, self.tied, self.sends = built, work.spec.tied_in(work.model_config), Sends(work)
        self.narrowed = Narrowed()
        self.listener = Listener(self.engine.parts, self._heard, last=[True], began=self._began)
        tell_moments(self.engine, self._told)
        axes = used(self.layout)
        self.averaging = prod(self.layout.size(x.name) for x in axes if x.averages or x.shares_samples)
        self.parts_of_samples = {axis.name for axis in axes if axis.shares_samples}
        self.takers: dict[int, tuple[Tensor, list[Spot]]] = {}  # of each tensor of the first micro-batch
        self.in_parts: set[Spot] = set()  # of which no single stage has the gradient
        # that divide what is inside of a sample
        self.within = {axis.name: axis for axis in axes if axis.name not in ("dp", "pp")}
        self.spots: dict[Spot, int] = {}  # with their places in the forward pass

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.engine.parts[0].named_parameters())

    def step(self, batch: Batch, notes: list[Notes]) -> list[Pair]:
        """Take a step with a global batch (rows, ...), in the order of one process; return it beside all notes."""
        self.notes, self.pairs = notes, list[Pair]()
        self.places = {place for note in notes for place in self._places(note)}
        self.sums: list[dict[tuple[str, Place], Mark]] = []  # of gradients, before each data rank and after the last
        self._start()
        self.listener.new_step()
        self.before = self._marks(lambda p: p)
        rows = self._as_ranks_take(batch)
        with self.narrowed:
            result = self.engine.step(rows)
        for about, got, want in (
            ("loss", [note.loss for note in notes], result.loss.item()),
            ("gradient norm", [note.grad_norm for note in notes], result.grad_norm.item()),
        ):
            for rank, number in enumerate(got):
                apart = abs(number - want)
                apart = apart if apart == apart else float("inf")
                self.pairs.append(Pair(NUMBER, 0, about, about, rank, apart, abs(want)))
        if self.together:
            self._buffers(END, [note.end for note in notes])
        return self.pairs

    # --- the rows

    def _as_ranks_take(self, batch: Batch) -> Batch:
        """Return the rows in the order of data ranks, where these are taken one after the other; look at theirs."""
        division = replace(self.work.division, micro_batch_size=len(batch) // (self.dp * self.chunks))
        for rank, note in enumerate(self.notes):
            rows = batch.each(lambda x, note=note: x[division.rows_of(note.ranks.get("dp", 0))])  # type: ignore[misc]
            for leaf, (noted, want) in enumerate(
                zip(note.batch, (*rows.inputs, rows.targets, *rows.more), strict=True)
            ):
                assert noted is not None, "a batch is a plain tensor"
                self._compare(BATCH, leaf, "batch", f"batch {leaf}", rank, noted, mark(want))
        if self.together:
            return batch
        order = [row for rank in range(self.dp) for row in division.rows_of(rank)]
        return batch.each(lambda x: x[order])

    def _compare(
        self,
        phase: int,
        place: int,
        about: "Spot | str | tuple[str, str]",
        kind: str,
        rank: int,
        noted: Marked,
        want: Mark,
        micro_batch: int | None = None,
    ) -> None:
        apart, size = gap(noted.mark, want, noted.numel), length(want, noted.numel)
        self.pairs.append(Pair(phase, place, about, kind, rank, apart, size, micro_batch))

    # --- tensors that ranks hold

    def _start(self) -> None:
        whole = self.parameters
        for rank, note in enumerate(self.notes):
            for name, noted in note.start.items():
                origin = self.tied.get(name, name)
                if noted is not None and origin in whole:
                    want = mark(cut(whole[origin], noted.where))
                    self._compare(START, self._number(origin), name, name, rank, noted, want)
        if self.together or self.engine.steps_done == 0:
            self._buffers(START, [note.start for note in self.notes])

    def _buffers(self, phase: int, notes: list[dict[str, Marked | None]]) -> None:
        buffers = dict(self.engine.parts[0].named_buffers())
        for rank, note in enumerate(notes):
            for place, (name, noted) in enumerate(note.items()):
                if noted is not None and name in buffers:
                    want = mark(cut(buffers[name], noted.where))
                    self._compare(phase, place + len(self.parameters), name, name, rank, noted, want)

    def _number(self, name: str) -> int:
        return list(self.parameters).index(name)

    # --- modules

    def _began(self, micro_batch: int) -> None:
        if not self.together and micro_batch % self.chunks == 0:
            self.sums.append(self._marks(lambda p: p.grad))

    def _heard(self, spot: Spot, gradient: bool, micro_batch: int, tensor: Tensor) -> None:
        place = self.spots.setdefault(spot, len(self.spots))
        if self.layout.stages > 1 and not self._is_whole(spot, gradient, micro_batch, tensor):
            return
        data_rank, chunk = (None, micro_batch) if self.together else divmod(micro_batch, self.chunks)
        made: dict[tuple, Mark] = {}
        for rank, note in enumerate(self.notes):
            noted = note.heard.get((spot, gradient, chunk))
            if noted is None or data_rank not in (None, note.ranks.get("dp", 0)):
                continue
            piece = self._piece(tensor, noted, note, gradient)
            if piece is None:
                continue
            key = (noted.shape, noted.where, *note.ranks.values())
            if key not in made:
                made[key] = mark(piece) * (self.averaging if gradient else 1)
            # what backward comes to first is what forward came to last
            phase, where = (BACKWARDS, -place) if gradient else (FORWARD, place)
            self._compare(phase, where, spot, "gradient" if gradient else "value", rank, noted, made[key], chunk)

    def _is_whole(self, spot: Spot, gradient: bool, micro_batch: int, tensor: Tensor) -> bool:
        """Return whether a stage has the whole gradient of a tensor: not where one before it takes it in as well.

        What several stages take in, such as a condition, is handed on from each to the next, and every stage adds to
        its gradient on the way back.
        """
        if not gradient:
            if micro_batch == 0:
                self.takers.setdefault(id(tensor), (tensor, []))[1].append(spot)
            return True
        if self.takers:
            for _, spots in self.takers.values():
                first = min((self.sends.stage_of(x.module) for x in spots if x.side == "input"), default=0)
                self.in_parts |= {x for x in spots if self.sends.stage_of(x.module) > first}
            self.takers = {}
        return spot not in self.in_parts

    def _piece(self, whole: Tensor, noted: Marked, note: Notes, gradient: bool) -> Tensor | None:
        """Return the piece of an activation that a rank noted; None where shapes do not say which it is.

        None as well for what is a sum or a mean over all that a rank has, where that is a part of the samples (of shape
        ()), or a part of each (a number for each sample, or the loads of experts).
        """
        sums = 2 if self.parts_of_samples else int(self.together)  # of how many dims they have fewer than
        if whole.ndim != len(noted.shape) or whole.ndim < sums:
            return None
        summed = set(self.parts_of_samples) if gradient else set()
        for dim, (size, held) in enumerate(zip(whole.shape, noted.shape, strict=True)):
            if size == held:
                continue
            if dim == 0:
                fits = ["dp"] if self.together and size == held * self.dp else []
            else:
                fits = [axis for axis in self.within if size == held * self.layout.size(axis)]
            if len(fits) != 1:
                return None
            summed.discard(fits[0])
            whole = self._of(fits[0], whole, dim, note)
        return None if summed else cut(whole, noted.where)

    def _of(self, axis: str, whole: Tensor, dim: int, note: Notes) -> Tensor:
        if axis in self.within:
            return self.within[axis].piece(whole, dim, note.ranks[axis], self.work)
        return whole.chunk(self.layout.size(axis), dim)[note.ranks[axis]]

    # --- gradients and updates

    def _told(self, moment: str) -> None:
        if moment == BACKWARD:
            self.sums.append(self._marks(lambda p: p.grad))
            self._gradients()
        elif moment == CLIP:
            self._after(CLIPPED, [note.clipped for note in self.notes], self._marks(lambda p: p.grad))
        elif moment == UPDATE:
            now = self._marks(lambda p: p)
            moved = {key: now[key] - was for key, was in self.before.items()}
            self._after(UPDATED, [note.updated for note in self.notes], moved)
            self._after(SHARED, [note.shared for note in self.notes], moved)

    def _after(self, phase: int, notes: list[dict[str, Marked]], want: dict[tuple[str, Place], Mark]) -> None:
        for rank, note in enumerate(notes):
            for name, noted in note.items():
                origin = self.tied.get(name, name)
                self._compare(phase, self._number(origin), name, str(phase), rank, noted, want[origin, noted.where])

    def _gradients(self) -> None:
        """Compare each gradient, at each moment at which it is known what it should be.

        That is the gradient of the rank's own rows or, once it is averaged and at the last moment, of all rows.
        """
        total = self.sums[-1]
        for rank, note in enumerate(self.notes):
            moments = [BACKWARD, *map(finished, note.finishes)]
            own = self._own(note.ranks.get("dp", 0))
            for (moment, name), noted in note.gradients.items():
                origin = self.tied.get(name, name)
                if noted is None or not self._is_known(name, noted, moments[: moments.index(moment) + 1], note):
                    continue
                if moment != moments[-1] and self.parts_of_samples:
                    continue  # that of a part of the rank's samples
                want = [total[origin, noted.where]]
                if moment != moments[-1] and (origin, noted.where) in own:
                    want.append(own[origin, noted.where])
                nearest = min(want, key=lambda mark, noted=noted: gap(noted.mark, mark, noted.numel))  # type: ignore[misc]
                # of several, what backward comes to first
                place = moments.index(moment) * len(self.parameters) - self._number(origin)
                self._compare(GRADIENT, place, (moment, name), "parameter", rank, noted, nearest)

    def _own(self, data_rank: int) -> dict[tuple[str, Place], Mark]:
        """Return the gradients of the mean loss of one data rank's rows, where they are known."""
        others = [axis.name for axis in used(self.layout) if axis.averages and axis.name != "dp"]
        if self.together or others:
            return {}
        begin, end = self.sums[data_rank], self.sums[data_rank + 1]
        return {key: (end[key] - begin[key]) * self.dp for key in end}

    def _is_known(self, name: str, noted: Marked, past: list[str], note: Notes) -> bool:
        """Return whether, after these moments, no axis but those that average has still to complete a gradient."""
        shared = self.sends.in_several_stages(name)
        waiting = [
            axis.name
            for axis in finishing_order(self.layout)
            if axis.name in note.finishes and not axis.averages and finished(axis.name) not in past
        ]
        return not any(shared or self.sends.reductions(name, noted.shape, axis=axis) for axis in waiting)

    def _places(self, note: Notes) -> Iterator[tuple[str, Place]]:
        """Yield which pieces of which parameters a rank has noted."""
        for notes in (note.clipped, note.updated, note.shared, {name: m for (_, name), m in note.gradients.items()}):
            yield from ((self.tied.get(name, name), noted.where) for name, noted in notes.items() if noted is not None)

    def _marks(self, of: Callable[[Tensor], Tensor | None]) -> dict[tuple[str, Place], Mark]:
        """Mark something of each parameter, of its shape, in every piece that a rank has noted."""
        whole = self.parameters
        taken = {name: of(parameter) for name, parameter in whole.items()}
        return {
            (name, where): mark(cut(found if (found := taken[name]) is not None else whole[name] * 0, where))
            for name, where in self.places
        }
