"""Print a page of docs/, such as `python -m paralab.benchmarks.documents options > docs/options.md`.

Options are read from the configurations of the commands, columns from `RunRecord`, the architecture from the imports of
all modules. A test fails when a page is not what this prints.
"""

import sys
from collections.abc import Sequence

from paralab.benchmarks.documents import architecture, claims, planner, reference, strategies

PAGES = {
    "options": reference.options,
    "columns": reference.columns,
    "architecture": architecture.page,
    "architecture.svg": architecture.picture,
    "claims": claims.page,
    "planner": planner.page,
    "strategies": strategies.page,
    **strategies.PICTURES,
}


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] not in PAGES:
        print(f"usage: python -m paralab.benchmarks.documents {'|'.join(PAGES)}", file=sys.stderr)
        return 2
    sys.stdout.write(PAGES[argv[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
