#!/usr/bin/env bash
# One door to paralab: sets up on a fresh machine, then runs the main job, the tests or any paralab command.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
stamp=$venv/.paralab-installed # written last, so that an interrupted installation is done again

usage() {
    cat <<'EOF'
usage: ./launch.sh                  set up if needed, then compare every strategy that fits this machine
       ./launch.sh test [ARG...]    the test suite (arguments go to pytest; --quick: under a minute)
       ./launch.sh check [--fix]    lint, format and types
       ./launch.sh COMMAND [ARG...] any paralab command, such as ./launch.sh verify --model gpt2
       ./launch.sh --nodes N --node-rank R --rendezvous HOST:PORT [OPTION...] -- COMMAND [ARG...]
                                   the same on each of N machines, R from 0; HOST is an address of machine 0

An active environment in which this checkout is installed is used as it is. Otherwise .venv is created here,
with the exact versions of constraints.txt, and reused from then on. pip reads its usual settings; on a machine
without an NVIDIA GPU this saves a download of several gigabytes:

       PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ./launch.sh

PYTHON=/path/to/python3 chooses the interpreter that .venv is made with.
./launch.sh commands lists the commands of paralab.
EOF
}

die() {
    printf 'launch.sh: %s\n' "$@" >&2
    exit 2
}

# Print the python of the active environment if this checkout is installed there.
active_python() {
    local python
    python=$(command -v python) || return 1
    # -I: what is installed counts, not what happens to lie in the current folder
    [[ $("$python" -I -c 'import os, paralab; print(os.path.realpath(paralab.__path__[0]))' 2>/dev/null) == "$root/parallel" ]] || return 1
    printf '%s\n' "$python"
}

# Print an interpreter that is new enough to make .venv with.
base_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            "$candidate" -c 'import venv, ensurepip' 2>/dev/null ||
                die "$candidate has no venv module: install it (Debian, Ubuntu: apt install python3-venv) and try again"
            printf '%s\n' "$candidate"
            return
        fi
        [[ $candidate != "${PYTHON:-}" ]] || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs"
    done
    die "Python 3.11, 3.12 or 3.13 is needed, $(python3 --version 2>&1 || true) found:" \
        "install one, or name it: PYTHON=/path/to/python3 ./launch.sh"
}

# What the installation depends on: when it changes, pip runs again.
fingerprint() {
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt" | cksum
    printf '%s\n' "$root" # a moved checkout leaves an environment that points to the old place
}

install() {
    echo "launch.sh: installing into $venv (once; some minutes)" >&2
    rm -f "$stamp"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # absent, or left half made
        local base
        base=$(base_python)
        "$base" -m venv "$venv" || die "$base cannot make $venv: see the message above; if the folder exists, remove it"
    fi
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --no-compile -c "$root/constraints.txt")
    # torch first: deepspeed would otherwise be free to choose another build of it
    "${pip[@]}" torch && "${pip[@]}" -e "$root[dev]" ||
        die "the installation failed, see pip's message above: when its cause is gone, run the same command again" \
            "(behind a proxy or a mirror: PIP_INDEX_URL=...; to start afresh: rm -rf $venv)"
    compile
    former_names
    fingerprint >"$stamp"
}

# Compile what is installed on all cores (pip does so on one), without what is hardly ever imported.
compile() {
    local packages rarely='site-packages/.*/tests?/|/transformers/models/'
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # packages hold some files for newer interpreters, which do not compile
    "$venv/bin/python" -m compileall -q -j 0 -x "$rarely" "$packages" >/dev/null 2>&1 || true
}

# Older scripts import `parallel` and `benchmarks`. In this environment these names lead to the checkout, as the last
# thing that Python looks for: whatever else has such a name is found before it (docs/design/import-name.md).
former_names() {
    "$venv/bin/python" - "$root" <<'EOF'
import sys, sysconfig
from pathlib import Path

line = (
    "import sys, importlib.util as u; sys.meta_path.append(type('FormerNames', (), {'find_spec': staticmethod("
    "lambda name, path=None, target=None, u=u, r=%r: u.spec_from_file_location(name, r + '/' + name + '/__init__.py', "
    "submodule_search_locations=[r + '/' + name]) if name in ('parallel', 'benchmarks') else None)}))\n"
)
Path(sysconfig.get_path("purelib"), "paralab_former_names.pth").write_text(line % sys.argv[1])
EOF
}

set_up() {
    if python=$(active_python); then
        return
    fi
    [[ -f $stamp && $(<"$stamp") == "$(fingerprint)" ]] || install
    python=$venv/bin/python
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH # torchrun, deepspeed and accelerate are found by what we start
}

case ${1:-} in
    -h | --help)
        usage
        ;;
    test)
        shift
        set_up
        "$python" -c 'import hypothesis, pytest, pytest_timeout, xdist' 2>/dev/null ||
            die "the active environment lacks the test tools: pip install -c constraints.txt -e '.[dev]'"
        cd "$root"
        (($#)) && exec "$python" -m pytest "$@"
        # Compiled once, also where Python is told to write no bytecode: by each process that tests start, otherwise.
        "$python" -m compileall -q -j 0 parallel models benchmarks tests >/dev/null || true
        # The whole suite: whole commands beside the unit tests, then what takes both cores (tests/README.md).
        failed=0
        "$python" -m pytest -n 2 tests/unit tests/e2e || failed=1
        "$python" -m pytest tests/dist || failed=1
        exit "$failed"
        ;;
    check)
        shift
        set_up
        exec "$root/check" "$@"
        ;;
    commands)
        set_up
        exec "$python" -m paralab.cli --help
        ;;
    --nodes | --nodes=*)
        set_up
        exec "$python" -m paralab.cli node "$@"
        ;;
    "")
        set_up
        exec "$python" -m paralab.cli tour
        ;;
    *)
        set_up
        exec "$python" -m paralab.cli "$@"
        ;;
esac
