#!/usr/bin/env bash
# About eleven minutes of one H100 or H200: no downloads, random weights, the most important first, what is known already
# last. JSON after each case, in $1 (default: benchmarks/results), so that an early end loses nothing. A piece that
# fails does not stop the next.
#
#   python benchmarks/planned.py FOLDER    afterwards, anywhere: plans beside these, and the use of the chip
#   GPU_SH_LIST=1 benchmarks/gpu.sh        only lists the pieces
#
# Seconds are those of an H200; where nothing was measured yet, in brackets, estimates: 12 to start, 8 to draw a model,
# and three steps a case.
cd "$(dirname "$0")/.." || exit 1
out=${1:-benchmarks/results}
piece() {
    echo "== $*"
    [ -n "$GPU_SH_LIST" ] && return
    python3 "benchmarks/$@" || echo "== failed: $*"
}
full() {
    local model=$1 part=$2 cases=()
    shift 2
    for case in "$@"; do cases+=(--case "$case"); done
    piece full_size.py --model "$model" "${cases[@]}" --out "$out/full_size_$model$part.json"
}
piece on_gpu.py --out "$out/on_gpu.json"                                                                        # 50 s
full wan "" "as shipped, few steps"                                                                             # (90 s)
full videocrafter "" "as shipped"                                                                               # 30 s
full svd "" "as shipped"                                                                                        # 75 s
full svd _memory "layers, two calls"                                                                            # (35 s)
piece rewards.py --out "$out/rewards_gpu.json"                                                                  # (60 s)
full modelscope "" "as shipped"                                                                                 # 50 s
full opensora "" "as shipped"                                                                                   # 80 s
full videocrafter _compile "compile"                                                                            # (120 s)
full videocrafter _prefix "prefix every 4" "prefix guidance in the first half"                                  # 35 s
full videocrafter _memory "nested, two calls, offload, park" "nested, two calls, offload" "two calls" \
    "one call"                                                                                                  # 50 s
