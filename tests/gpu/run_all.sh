#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one: what is there, the tests, the figures.
#   tests/gpu/run_all.sh [OUT]         PYTHON names the interpreter
# It ends with 0 when the tests pass; figures stand in OUT (default: runs/gpu).
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-runs/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv 2>/dev/null | tee "$OUT/gpu.csv"
"$PYTHON" -m megalign doctor | tee "$OUT/doctor.txt"
"$PYTHON" -m pytest -q -m gpu tests/gpu 2>&1 | tee "$OUT/tests.txt"
status=${PIPESTATUS[0]}
"$PYTHON" tests/gpu/step_speed.py --preset "${PRESET:-1.3b}" --micro-batch "${MICRO_BATCH:-4}" --steps "${STEPS:-20}" \
    --out "$OUT/step_speed.json" 2>&1 | tee "$OUT/step_speed.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
exit "$status"
