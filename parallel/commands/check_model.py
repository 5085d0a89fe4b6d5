"""Check a model against the rules that strategies rely on.

    paralab check-model --model resnet --size 50
    paralab check-model --model my_model.py:SPEC

The rules are listed in models/spec.py and docs/models.md. The model is built on the meta device, which takes no memory,
and run there: whole, as two pipeline stages, and as one of several tensor ranks. Each broken rule is printed with the
line of the model's file that breaks it. Of a model that keeps them it is printed which strategies can divide it, and
what the others lack.
"""

from typing import TYPE_CHECKING

from paralab.errors import ConfigError, LayoutError, ModelError, did_you_mean
from paralab.layout.strategies import STRATEGIES
from paralab.models import SPECS
from paralab.models.files import FORM
from paralab.options.arguments import Parser

if TYPE_CHECKING:
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec


def main(argv: list[str]) -> int:
    """Print what a model breaks. Returns: 0 when it keeps every rule.

    Raises: ModelError when it breaks one; ConfigError for a model or size that is unknown.
    """
    parser = Parser(prog="paralab check-model", description=__doc__)
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="gpt2",
        help=f"Model to check: a built-in one, or {FORM} of a ModelSpec (default: gpt2)",
    )
    parser.add_argument("--size", metavar="NAME", help="Size of the model (default: the smallest)")
    options = parser.parse_args(argv)
    from paralab.parity.model_rules import broken

    spec = SPECS[options.model]
    size = options.size or spec.tiny_size
    try:
        config = spec.config(size)
    except (KeyError, ValueError):
        hint = did_you_mean(size, spec.sizes)
        raise ConfigError(
            f"--size {size} is unknown for {spec.name}{hint}: use one of {', '.join(spec.sizes)}"
        ) from None
    found = broken(spec, config)
    for problem in found:
        print(problem)
    if found:
        raise ModelError(f"{spec.name} {size} breaks {len(found)} rule(s): see above and docs/models.md")
    print(f"{spec.name} {size} keeps the rules: blocks, ends, initialisation, loss, stages, tensor plan")
    able, unable = _strategies(spec, config)
    print(f"It can be trained with {', '.join(able)}")
    for why, names in unable.items():
        print(f"Not with {', '.join(names)}: {why}")
    return 0


def _strategies(spec: "ModelSpec[C]", config: "C") -> tuple[list[str], dict[str, list[str]]]:
    """Return the strategies whose smallest layout can divide a model, and the others by why not."""
    from paralab.axes.check import check_split

    able: list[str] = []
    unable: dict[str, list[str]] = {}
    for strategy in STRATEGIES.values():
        try:
            check_split(strategy.layout(strategy.least), spec=spec, config=config)
            able.append(strategy.name)
        except LayoutError as error:
            unable.setdefault(str(error), []).append(strategy.name)
    return able, unable
