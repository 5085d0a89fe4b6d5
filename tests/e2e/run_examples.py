"""Runs example after example in the processes of one launch, with a line before each: started by test_examples.py."""

import os
import runpy
import sys

for path in sys.argv[1:]:
    if os.environ["RANK"] == "0":
        print(f"== {os.path.basename(path)}", flush=True)
    sys.path[0] = os.path.dirname(path)  # as where it is started by itself
    runpy.run_path(path, run_name="__main__")
sys.stdout.flush()
os._exit(0)  # without what threads of torch do when Python ends, which may abort it where a script is plain Accelerate
