"""Run a command on a simulated cluster: several nodes inside this machine, with links of a chosen bandwidth.

    paralab cluster --nodes 3 --bandwidth 1gbit -- run --layout dp3

Each node is a Linux network namespace with an address, a host name and CPU cores of its own.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from paralab.commands.node import add_shared_options, command_of
from paralab.errors import UsageError
from paralab.nodes import simulated
from paralab.nodes.simulated import ACTIONS, MOST_NODES, Event, Request
from paralab.nodes.simulated_node import bits_per_s
from paralab.options.arguments import Parser, positive


def main(argv: Sequence[str]) -> int:
    """Run a command line on the nodes of a simulated cluster; return its exit status.

    Raises: UsageError when the command line is wrong, or when tools or rights are missing.
    """
    return simulated.run(parse(argv), [sys.executable, "-m", "paralab.commands.cluster", *argv])


def _bandwidth(text: str) -> str:
    try:
        bits_per_s(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _cores(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) < 0.01:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of cores: write 0.5, 1 or 2")
    return float(text)


def _event(text: str) -> Event:
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?):({'|'.join(ACTIONS)}):([0-9]+)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an event: write SECONDS:ACTION:NODE, such as 20:cut:1; actions: {', '.join(ACTIONS)}"
        )
    return Event(float(match[1]), match[2], int(match[3]))


def parse(words: Sequence[str]) -> Request:
    """Read the command line. Raises: UsageError."""
    options = _parser().parse_args(words)
    fewest, most = options.nodes
    if most > MOST_NODES:
        raise UsageError(f"--nodes {most}: a cluster has at most {MOST_NODES}")
    for event in options.at:
        if event.node >= most:
            raise UsageError(f"--at {event.at_s:g}:{event.action}:{event.node}: nodes are 0 to {most - 1}")
    procs = options.procs_per_node or 1
    return Request(
        nodes=most,
        node_option=(
            *("--nodes", f"{fewest}:{most}" if fewest < most else f"{most}", "--procs-per-node", str(procs)),
            *("--max-restarts", str(options.max_restarts), "--join-timeout", str(options.join_timeout)),
            *("--node-timeout", str(options.node_timeout)),
        ),
        procs_per_node=procs,
        bandwidth=options.bandwidth,
        cores_per_node=options.cores_per_node,
        events=tuple(options.at),
        grace_s=options.grace,
        command=command_of(options),
    )


def _parser() -> Parser:
    parser = Parser(
        prog="paralab cluster",
        usage="%(prog)s OPTION... -- COMMAND [OPTION...]",
        description=__doc__,
        epilog="A Python file or a paralab command is started on each node as paralab node does. Any other command is"
        " run as it is: it finds NODE_RANK, NNODES, NPROC_PER_NODE, MASTER_ADDR, MASTER_PORT and PARALAB_NODE_ADDRESS"
        " in its environment, and torchrun in it spans the nodes without further options.",
    )
    parser.add_argument(
        "--bandwidth",
        type=_bandwidth,
        metavar="RATE",
        help="Bandwidth of each node's link, such as 100mbit or 1gbit (default: not limited)",
    )
    parser.add_argument(
        "--cores-per-node",
        type=_cores,
        metavar="X",
        help="CPU cores that each node may use, such as 0.5; needs root (default: not limited)",
    )
    parser.add_argument(
        "--at",
        type=_event,
        action="append",
        default=[],
        metavar="S:ACTION:NODE",
        help="After S seconds, cut or heal the link of a node, kill its processes, or start it again; 0:kill:2 leaves "
        "node 2 out at first. May be given several times",
    )
    parser.add_argument(
        "--grace",
        type=positive,
        default=10.0,
        metavar="S",
        help="Seconds that processes have to end after a signal, before they are killed (default: 10)",
    )
    add_shared_options(parser, procs_per_node="1")
    return parser


if __name__ == "__main__":  # as the first process inside
    sys.exit(simulated.be_first(parse(sys.argv[1:])))
