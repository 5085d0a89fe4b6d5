"""What one rank measured of a case."""

from dataclasses import dataclass, field

from paralab.measure.compiling import Compiled
from paralab.measure.ledger import CommRow
from paralab.measure.routing import Loads
from paralab.measure.span import SpanRecord
from paralab.measure.split import Split
from paralab.measure.telemetry import Telemetry


@dataclass
class RankResult:
    """What one rank measured."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    warmup_times_s: list[float] = field(default_factory=list)  # each until its loss was read
    step_times_s: list[float] = field(default_factory=list)
    data_waits_s: list[float] = field(default_factory=list)
    telemetry: Telemetry | None = None
    comm: list[CommRow] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    tensors_peak_bytes: int = 0
    state_peak_bytes: int = 0
    moments: tuple[int, int] = (0, 0)  # numbers in 8 bits, and all
    loads: Loads = field(default_factory=dict)
    process_peak_bytes: int | None = None
    gpu_peak_bytes: tuple[int | None, int | None] = (None, None)
    splits: list[Split] = field(default_factory=list)  # of untimed steps, from `splits_from` on
    splits_from: int = 0
    compiled: Compiled = Compiled()
    peak_flops: float = 0.0
    peak_source: str = ""
