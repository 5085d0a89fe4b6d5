"""What of a layout is kept in the memory of the host, and what is refused of it."""

import pytest

from paralab.axes.held import state_bytes_of
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("dp2/offload-parameters", "add zero3"),
        ("dp2/zero1/offload-parameters", "add zero3"),
        ("dp2/zero3/offload-parameters/offload-optimizer", "leave offload-optimizer out"),
        ("dp2/local2/offload-optimizer", "leave one of them out"),
    ],
)
def test_refused(layout: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        Layout.parse(layout)


def test_other_engines_are_refused() -> None:
    with pytest.raises(LayoutError, match="--engine torch"):
        resolve(RunConfig(layout=Layout.parse("dp2/zero3/offload-parameters"), engine="deepspeed"))


@pytest.mark.parametrize(
    "layout", ["dp2/zero1/offload-optimizer", "dp4/zero3/offload-parameters", "dp1/offload-optimizer"]
)
def test_the_host_holds_what_the_device_does_not(layout: str) -> None:
    offloaded = Layout.parse(layout)
    kept = offloaded.but(offload_optimizer=False, offload_parameters=False)
    assert Layout.parse(str(offloaded)) == offloaded
    there, here = (state_bytes_of(resolve(RunConfig(size="tiny", layout=each)), 0) for each in (offloaded, kept))
    assert there.optimizer == 0 < here.optimizer
    copies = here.gradients / max(offloaded.dp if offloaded.zero else 1, 1) if offloaded.offload_optimizer else 0
    assert there.everywhere == pytest.approx(here.everywhere + copies, abs=1)
