#!/usr/bin/env bash
# Rebuilds the shipped bundle, policies/bundles/default. Needs the ServeGen traces in $RAYFOLD_TRACES or ./traces.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
.venv/bin/rayfold train --scenario llm_api,low_scale,local_demo --stop-minutes 27 --batch-steps 8192 --num-envs 64 \
    --evaluation-episodes 8 --seed 1 --run-dir runs/default_bundle --bundle policies/bundles/default
# When the network leads and when a heuristic does: about four hours of one core.
.venv/bin/rayfold train-switch --jobs 2 --run-dir runs/default_switch --out policies/bundles/default \
    --scenario llm_api,slow_start,llm_api_pack_groups,tight,fractional,spot,mixed_fleet,low_scale \
    --episodes 12,12,12,12,12,12,12,6 --horizon-h 12,12,12,8,8,8,5,4
# When the exact planner begins.
.venv/bin/rayfold train-timing --jobs 2 --run-dir runs/default_timing --out policies/bundles/default \
    --scenario slow_start,llm_api,llm_api_pack_groups,tight,fractional,spot --horizon-h 12,12,12,8,8,5 --generations 36
