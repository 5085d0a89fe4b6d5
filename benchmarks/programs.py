"""How a program that `python -m` starts ends: with a status, and what a user did wrong in one line."""

import sys
from collections.abc import Callable

from paralab.errors import ParalabError
from paralab.records.cells import one_line


def program(main: Callable[[list[str]], int], name: str) -> None:
    """Run a main function with the words of the command line, and end the process. name: said before an error."""
    try:
        status = main(sys.argv[1:])
    except ParalabError as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        status = error.exit_status
    sys.exit(status)
