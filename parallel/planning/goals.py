"""What a training is to reach: so many tokens, within a budget, or within some days; what is open is solved for.

tokens                with GPUs: days, device-hours and money
budget                with GPUs: tokens
days                  with GPUs: tokens
days and tokens       GPUs
days and budget       GPUs and tokens
"""

from dataclasses import dataclass

from paralab.errors import ConfigError
from paralab.options.numbers import meant, number_of

LARGEST = 1e18  # of tokens, dollars and days


@dataclass(frozen=True)
class Goal:
    """What was said of a training. tokens: a number, or one for each weight such as 20x. None: not said."""

    tokens: str | None = None
    budget_usd: float | None = None
    days: float | None = None
    dollars_per_hour: float | None = None

    @property
    def finds_gpus(self) -> bool:
        """Whether the number of GPUs follows from it."""
        return self.days is not None and (self.tokens is not None or self.budget_usd is not None)

    @property
    def is_there(self) -> bool:
        return any(value is not None for value in (self.tokens, self.budget_usd, self.days))

    def check(self, *, n_gpus: bool) -> None:
        """Raise ConfigError where it says too much or too little. n_gpus: whether a number of GPUs was given."""
        if self.dollars_per_hour is not None and not self.is_there:
            raise ConfigError(
                "--price-per-gpu-hour without --tokens: say how long the training is, such as --tokens 20x"
            )
        if self.tokens is not None and self.budget_usd is not None:
            raise ConfigError("--budget-usd with --tokens: the budget says how many tokens there can be, leave one out")
        if self.budget_usd is not None and self.dollars_per_hour is None:
            raise ConfigError("--budget-usd without --price-per-gpu-hour: say what a GPU costs, such as 2.50")
        if self.finds_gpus and n_gpus:
            other = "--tokens" if self.tokens is not None else "--budget-usd"
            raise ConfigError(f"--days with {other} says how many GPUs it takes: leave --n-gpus out, or one of the two")
        if not self.finds_gpus and not n_gpus:
            raise ConfigError("--n-gpus is missing: say how many GPUs there are, such as --n-gpus 64")
        if self.tokens is not None:
            tokens_of(self.tokens)


def number(text: str, flag: str) -> float:
    """Return a number above 0. Raises: ConfigError for anything else, and for more than `LARGEST`."""
    value = number_of(text)
    if value is None or not 0 < value < LARGEST:
        raise ConfigError(f"{flag} {text}{meant(text)}: give a positive number below {LARGEST:g}, such as 1e11")
    return value


def tokens_of(text: str) -> tuple[float, bool]:
    """Return a number of tokens, and whether it is one for each weight (20x). Raises: ConfigError as `number` does."""
    a_weight = text[-1:] in ("x", "X") and number_of(text[:-1]) is not None
    return number(text[:-1] if a_weight else text, "--tokens"), a_weight
