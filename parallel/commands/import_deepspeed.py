"""Convert the weights of a DeepSpeed ZeRO checkpoint, for paralab train --init-from.

    paralab import-deepspeed saved weights --trust

FOLDER is what engine.save_checkpoint wrote, in a program of your own that trains a model with paralab's parameter
names. DeepSpeed's own zero_to_fp32 puts the weights together, and they are written in fp32 to DIR/model.safetensors.
Optimizer states are not converted. The files are pickles, which can run any program with your rights: hence --trust.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from paralab.console.outputs import folder_written_whole
from paralab.errors import ConfigError, DataError
from paralab.options.arguments import Parser, new_folder


def main(argv: list[str]) -> int:
    """Write the folder; print where. Returns: 0.

    Raises: ConfigError without --trust; DataError when the source cannot be read.
    """
    options = _parse(argv)
    source, target = Path(options.source), options.target
    if not options.trust:
        raise ConfigError(
            f"{source} holds pickles, which can run any program with your rights when they are read: "
            "add --trust if you know who wrote it"
        )
    with folder_written_whole(target) as folder:
        import_deepspeed(source, folder)
    print(f"weights of {source} written to {target}")
    return 0


def import_deepspeed(source: Path, target: Path) -> None:
    """Write the weights of a ZeRO checkpoint as safetensors. Raises: DataError when it is none."""
    from safetensors.torch import save_file

    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        try:
            state = get_fp32_state_dict_from_zero_checkpoint(str(source))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source} has no ZeRO checkpoint ({error}): give what save_checkpoint wrote, of stage 1 to 3"
            ) from None
    once = {id(tensor): name for name, tensor in state.items()}  # a tied parameter is one tensor under two names
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: state[name].contiguous().clone() for name in once.values()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab import-deepspeed", description=__doc__)
    parser.add_argument("source", metavar="FOLDER", help="Folder that DeepSpeed's save_checkpoint wrote")
    parser.add_argument("target", type=new_folder, metavar="DIR", help="New folder to write to")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Read the pickles of FOLDER (required); whoever wrote them can run any program with your rights",
    )
    return parser.parse_args(argv)
