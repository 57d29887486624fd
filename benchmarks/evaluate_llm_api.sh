#!/usr/bin/env bash
# The README's table: every policy on sixteen validation days of llm_api. Writes out/llm_api.json and out/llm_api.png.
# Needs the ServeGen traces in $RAYFOLD_TRACES or ./traces.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
.venv/bin/rayfold evaluate --scenario llm_api --policies none,best_fit,dearest_first,ray_serve,learned \
    --split validation --seeds 16 --json out/llm_api.json
