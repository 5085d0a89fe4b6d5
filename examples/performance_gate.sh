#!/usr/bin/env bash
# Is HEAD slower than BASE? Runs the same sweep with both, in pairs, and compares them: a gate for CI (docs/compare.md).
#
#     examples/performance_gate.sh base/launch.sh head/launch.sh FOLDER --layouts dp2,dp2/zero3 --size nano
#
# BASE and HEAD are commands that take the words after `paralab`; what follows FOLDER are options of `paralab bench`.
# REPEATS (10) and FAIL_OVER (5, percent) are read from the environment. FOLDER keeps base.csv, head.csv, compare.txt and
# report.html. The exit status is that of `paralab compare`: 0 passes, 2 is a regression, 4 is not enough evidence.
set -euo pipefail

if (($# < 3)); then
    echo "usage: performance_gate.sh BASE HEAD FOLDER [OPTION of paralab bench...]" >&2
    exit 3
fi
read -ra base <<<"$1"
read -ra head <<<"$2"
folder=$3
shift 3
mkdir -p "$folder"
files=("$folder/base.csv" "$folder/head.csv")

# A sweep that is told to have one repeat more goes on where it was. A run that fails is a row, which compare judges.
run_base() { "${base[@]}" bench "$@" --group gate --out "${files[0]}" >>"$folder/bench.log" || true; }
run_head() { "${head[@]}" bench "$@" --group gate --out "${files[1]}" >>"$folder/bench.log" || true; }

for ((repeats = 1; repeats <= ${REPEATS:-10}; repeats++)); do
    if ((RANDOM % 2)); then # which of a pair is first is a matter of chance: then its verdict is not
        run_base "$@" --repeats "$repeats"
        run_head "$@" --repeats "$repeats"
    else
        run_head "$@" --repeats "$repeats"
        run_base "$@" --repeats "$repeats"
    fi
done

status=0
"${head[@]}" compare "${files[@]}" --fail-over "${FAIL_OVER:-5}" --fail-on-change >"$folder/compare.txt" || status=$?
"${head[@]}" report "${files[@]}" --out "$folder/report.html"
cat "$folder/compare.txt"
exit "$status"
