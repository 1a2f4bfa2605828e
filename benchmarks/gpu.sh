#!/usr/bin/env bash
# Ten minutes of a GPU: no downloads, random weights, the most important first. JSON after each piece, in $1
# (default: benchmarks/results), so that an early end loses nothing. A piece that fails does not stop the next.
cd "$(dirname "$0")/.." || exit 1
out=${1:-benchmarks/results}
piece() { echo "== $*"; python3 "benchmarks/$@" || echo "== failed: $*"; }
piece on_gpu.py --out "$out/on_gpu.json"
for model in videocrafter svd modelscope opensora; do
    piece full_size.py --model "$model" --out "$out/full_size_$model.json"
done
piece rewards.py --out "$out/rewards_gpu.json"
