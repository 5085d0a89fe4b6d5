"""What the options of sweeps, comparisons and pictures offer, apart from what does it: help needs no numpy."""

FORMATS = ("text", "markdown", "csv", "json")  # of comparisons
FIRST, LAST = 6, 60  # pairs at the first and at the last look of a sweep that goes on until all is decided
REGRESSION, NOT_COMPARABLE, UNDECIDED = 2, 3, 4  # exit statuses of a comparison
CHECKPOINTS = 6  # at most, of a training run whose filters are drawn
