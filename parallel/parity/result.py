"""What a parity check found: the largest differences, and whether they are within their tolerance."""

from collections.abc import Iterator
from dataclasses import dataclass

from paralab.parity.tolerances import Tolerance


@dataclass(frozen=True)
class ParityResult:
    """The largest differences between a layout and one process, and the tolerance they were held to.

    A parameter's difference is measured in what the steps of the reference moved that parameter by, so that one which
    is not updated differs by 1 whatever the learning rate is.
    """

    steps: int
    loss_difference: float  # relative
    grad_norm_difference: float  # relative
    parameter_difference: float  # of the movement in the reference
    worst_parameter: str
    tolerance: Tolerance
    parameters: int = 0  # that were compared, running statistics among them
    unjudged: int = 0  # of them: the reference moves these no further than rounding could
    missing: tuple[str, ...] = ()  # parameters of the reference that no rank has compared
    micro_batches: int = 1  # that the reference takes in turn, where the model has statistics of what it sees together
    first: str = ""  # where it failed: the first layer, gradient or update that differs, and after which collective

    @property
    def passed(self) -> bool:
        return (
            self.loss_difference <= self.tolerance.loss
            and self.grad_norm_difference <= self.tolerance.grad_norm
            and self.parameter_difference <= self.tolerance.parameters
            and not self.missing
        )

    def __str__(self) -> str:
        return f"{self.verdict}; {self.first}" if self.first else self.verdict

    @property
    def verdict(self) -> str:
        """Passed or not, and what is beyond its tolerance, in words."""
        if not self.passed:
            return "FAILED: " + ", ".join(self.failures())
        if self.unjudged and self.unjudged == self.parameters:
            return "passed (the reference moves no parameter further than rounding: all that is shown is that none may)"
        if self.unjudged:
            return f"passed ({self.unjudged} of {self.parameters} parameters move no further than rounding)"
        if self.micro_batches > 1:  # a process that takes the whole batch at once has other statistics
            return f"passed, against one process that accumulates {self.micro_batches} micro-batches"
        return "passed"

    def failures(self) -> Iterator[str]:
        """Yield what is beyond its tolerance, as got and allowed."""
        if not self.loss_difference <= self.tolerance.loss:
            yield f"loss differs by {self.loss_difference:.1e} (allowed {self.tolerance.loss:.0e})"
        if not self.grad_norm_difference <= self.tolerance.grad_norm:
            yield f"gradient norm differs by {self.grad_norm_difference:.1e} (allowed {self.tolerance.grad_norm:.0e})"
        if not self.parameter_difference <= self.tolerance.parameters:
            yield (
                f"{self.worst_parameter} differs by {self.parameter_difference:.1e} of what the steps moved it by "
                f"(allowed {self.tolerance.parameters:.1g})"
            )
        if self.missing:
            yield f"{self.missing[0]} was compared on no rank ({len(self.missing)} parameter(s) were not)"
