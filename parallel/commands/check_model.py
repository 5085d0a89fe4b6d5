"""Check a model against the rules that strategies rely on.

    paralab check-model --model resnet --size 50
    paralab check-model --model my_model.py:SPEC

The rules are listed in models/spec.py and docs/models.md. The model is built on the meta device, which takes no memory,
and run there: whole, as two pipeline stages, and as one of several tensor ranks. Each broken rule is printed with the
line of the model's file that breaks it.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from paralab.errors import ConfigError, ModelError, did_you_mean
from paralab.models import SPECS
from paralab.models.spec import ModelSpec
from paralab.options.arguments import Parser
from paralab.parity.model_rules import broken


def main(argv: list[str]) -> int:
    """Print what a model breaks. Returns: 0 when it keeps every rule.

    Raises: ModelError when it breaks one; ConfigError for a model or size that is unknown.
    """
    parser = Parser(prog="paralab check-model", description=__doc__)
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="gpt2",
        help="Model to check: a built-in one, or FILE.py:NAME of a ModelSpec (default: gpt2)",
    )
    parser.add_argument("--size", metavar="NAME", help="Size of the model (default: the smallest)")
    options = parser.parse_args(argv)
    spec = load(options.model)
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
    return 0


def load(name: str) -> ModelSpec:
    """Return a built-in spec, or the one of that name in a Python file, which is run. Raises: ConfigError."""
    if name in SPECS:
        return SPECS[name]
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        hint = did_you_mean(name, SPECS)
        raise ConfigError(f"--model {name} is unknown{hint}: use one of {', '.join(SPECS)}, or FILE.py:SPEC")
    if not Path(file).is_file():
        raise ConfigError(f"--model {name}: there is no file {file}")
    found = spec_from_file_location(f"paralab_model_{Path(file).stem}", file)
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and tracebacks look for it there
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--model {name}: {file} cannot be imported ({type(error).__name__}: {error})") from error
    spec = getattr(module, attribute, None)
    if not isinstance(spec, ModelSpec):
        raise ConfigError(f"--model {name}: {attribute} in {file} is not a ModelSpec")
    return spec
