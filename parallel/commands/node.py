"""Start this machine's processes of a run on several nodes.

    paralab node --nodes 2 --node-rank 0 --rendezvous 10.0.0.5:29500 -- train

Type it on every machine, with its own --node-rank. `./launch.sh --nodes N ...` does the same and sets up first.
"""

import argparse
import re
from collections.abc import Sequence

from paralab.errors import UsageError
from paralab.nodes.start import NodeRequest, take_part
from paralab.options.arguments import Parser, positive, whole


def main(argv: Sequence[str]) -> int:
    """Take part in a run as one node; return when the run has ended on all of them."""
    return take_part(parse(argv))


def node_counts(text: str) -> tuple[int, int]:
    """Read `3` or `1:3` as the fewest and the most nodes. Raises: ArgumentTypeError for anything else."""
    match = re.fullmatch(r"([1-9][0-9]*)(?::([1-9][0-9]*))?", text)
    if not match or int(match[1]) > int(match[2] or match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes: write 3, or 1:3 for one to three")
    return int(match[1]), int(match[2] or match[1])


def add_shared_options(parser: argparse.ArgumentParser, *, procs_per_node: str) -> None:
    """Add the options that `paralab node` and `paralab cluster` have in common.

    procs_per_node: the default of that option, in words.
    """
    parser.add_argument(
        "--nodes",
        type=node_counts,
        required=True,
        metavar="N|MIN:MAX",
        help="Number of nodes, or MIN:MAX for a run whose nodes may come and go",
    )
    parser.add_argument(
        "--procs-per-node",
        type=whole(1),
        metavar="P",
        help=f"Number of processes on each node (default: {procs_per_node})",
    )
    parser.add_argument(
        "--max-restarts",
        type=whole(0),
        default=0,
        metavar="K",
        help="Restart the processes after a failure, at most this many times (default: 0)",
    )
    parser.add_argument(
        "--join-timeout",
        type=positive,
        default=300.0,
        metavar="S",
        help="Seconds to wait for all nodes at the start (default: 300)",
    )
    parser.add_argument(
        "--node-timeout",
        type=positive,
        default=30.0,
        metavar="S",
        help="Seconds after which a node that does not answer counts as lost (default: 30)",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="Command of paralab, or Python file, to run on every node, with its options",
    )


def command_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words after `--`. Raises: UsageError when there are none."""
    words = tuple(options.command[1:] if options.command[:1] == ["--"] else options.command)
    if not words:
        raise UsageError("no command given: write it after --, such as -- run --model gpt2")
    return words


def parse(argv: Sequence[str] | None) -> NodeRequest:
    """Read the command line. Raises: UsageError."""
    parser = Parser(prog="paralab node", usage="%(prog)s OPTION... -- COMMAND [OPTION...]", description=__doc__)
    parser.add_argument("--node-rank", type=whole(0), required=True, metavar="R", help="Number of this node, from 0")
    parser.add_argument(
        "--rendezvous",
        required=True,
        metavar="HOST:PORT",
        help="Address and port of node 0, where the nodes meet; node 0 listens on this address only",
    )
    add_shared_options(parser, procs_per_node="one per GPU, or 1")
    options = parser.parse_args(argv)
    fewest, most = options.nodes
    if not 0 <= options.node_rank < most:
        raise UsageError(f"--node-rank {options.node_rank} of {most} nodes: use 0 to {most - 1}")
    host, _, port = options.rendezvous.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--rendezvous {options.rendezvous}: write HOST:PORT, such as 10.0.0.5:29500")
    return NodeRequest(
        min_nodes=fewest,
        max_nodes=most,
        node_rank=options.node_rank,
        host=host.strip("[]"),
        port=int(port),
        procs_per_node=options.procs_per_node or _devices(),
        max_restarts=options.max_restarts,
        join_timeout_s=options.join_timeout,
        node_timeout_s=options.node_timeout,
        command=_continuing(command_of(options), restarts=fewest < most or options.max_restarts > 0),
    )


def _continuing(command: tuple[str, ...], *, restarts: bool) -> tuple[str, ...]:
    """Return a command that can be started again. Raises: UsageError where it would not go on from where it was."""
    words = command[1:] if command[0] == "paralab" else command
    if not (restarts and words and words[0] == "train"):
        return command
    following = words[words.index("--resume") + 1 :][:1] if "--resume" in words else None
    if following is None or (following and not following[0].startswith("--")):
        raise UsageError(
            "paralab train that may be started again (--nodes MIN:MAX, --max-restarts): add --resume, without a path,"
            " and every start goes on from the newest checkpoint"
        )
    return command


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
