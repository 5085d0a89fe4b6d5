"""Runs example after example in the processes of one launch, with a line before each: started by test_examples.py."""

import os
import runpy
import sys

for path in sys.argv[1:]:
    if os.environ["RANK"] == "0":
        print(f"== {os.path.basename(path)}", flush=True)
    runpy.run_path(path, run_name="__main__")
