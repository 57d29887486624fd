#!/usr/bin/env bash
# Rebuilds the second shipped bundle, policies/bundles/many_worlds: eight scenarios at once. Needs the ServeGen traces in
# $RAYFOLD_TRACES or ./traces. It was interrupted after 47 minutes on a busy machine, at 511,863 steps.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
.venv/bin/rayfold train --scenario llm_api,slow_start,mixed_fleet,low_scale,tight,fractional,spot,llm_api_pack_groups \
    --stop-minutes 70 --batch-steps 8192 --num-envs 56 --seed 11 --run-dir runs/many_worlds \
    --bundle policies/bundles/many_worlds
