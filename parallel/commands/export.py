"""Write the weights of a checkpoint for other programs.

    paralab export runs/alice alice-hf --format hf

hf writes a folder that AutoModelForCausalLM and AutoTokenizer of transformers read; safetensors writes one file with
paralab's own parameter names. paralab train --init-from starts from either.
"""

import argparse
from pathlib import Path

from paralab.console.clock import Moment
from paralab.console.outputs import folder_written_whole
from paralab.console.phases import Phases
from paralab.errors import ConfigError
from paralab.models.files import FORM, MOVED
from paralab.options.arguments import TOKENIZER_MOVED, Parser, new_folder


def main(argv: list[str]) -> int:
    """Write the folder; print where."""
    options = _parse(argv)
    began = Moment.now()
    from paralab import checkpoint
    from paralab.inference.restore import find

    path = find(Path(options.checkpoint))
    with Phases(began) as phases, folder_written_whole(options.target) as target:
        if options.format == "safetensors":
            phases.begin(f"writing its weights to {options.target}")
            checkpoint.export_safetensors(path, target)
            said = ""
        else:
            said = _to_hugging_face(path, target, options, phases)
    print("\n".join(filter(None, (said, f"{path} written to {options.target}"))))
    return 0


def _to_hugging_face(path: Path, target: Path, options: argparse.Namespace, phases: Phases) -> str:
    """Write to the folder `target`; return what is to be said of its tokenizer, where the model came with one."""
    from paralab.data.tokenizer import get_tokenizer
    from paralab.inference.restore import restore
    from paralab.models.configs import TextConfig
    from paralab.models.hugging_face import CausalLMConfig
    from paralab.weights import causal_lm, tokenizer_files
    from paralab.weights.hugging_face import convertible, to_hugging_face

    phases.begin(f"reading {path}")
    trained = restore(path, model=options.model, tokenizer=options.tokenizer)
    spec, config = trained.work.spec, trained.work.model_config
    if isinstance(config, CausalLMConfig):
        phases.begin(f"writing {options.target}")
        return causal_lm.write(target, config, trained.model, source=spec.name)
    if spec.hugging_face is None:
        able = " and ".join(sorted(other.name for other in convertible().values()))
        raise ConfigError(f"{path} is a {spec.name} model, and --format hf is for {able}: use --format safetensors")
    phases.begin(f"writing {options.target}")
    end = get_tokenizer(config.tokenizer).end_of_text if isinstance(config, TextConfig) else None
    to_hugging_face(target, trained.model.state_dict(), spec=spec, config=config, end_of_text=end)
    if isinstance(config, TextConfig):
        tokenizer_files.save(config.tokenizer, target, longest=config.seq_len)
    return ""


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab export", description=__doc__)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="Checkpoint to read: a folder RUN/step-N, or a folder RUN, whose best checkpoint is read",
    )
    parser.add_argument("target", type=new_folder, metavar="DIR", help="New folder to write to")
    parser.add_argument("--format", choices=("hf", "safetensors"), default="hf", help="Format to write (default: hf)")
    parser.add_argument("--model", metavar=FORM, help=MOVED)
    parser.add_argument("--tokenizer", metavar="FILE", help=TOKENIZER_MOVED)
    return parser.parse_args(argv)
