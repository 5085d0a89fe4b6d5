"""One process: the reference that every other strategy must reproduce."""

from parallel.layout import Layout
from parallel.spec import Strategy

STRATEGIES = (
    Strategy(
        name="single",
        axes=(),
        when="the model and its batch fit on one device",
        costs="nothing is sent; nothing is faster with more devices",
        layout=lambda nproc: Layout(),
    ),
)
