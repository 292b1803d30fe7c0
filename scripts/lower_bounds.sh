#!/usr/bin/env bash
# Tests the lower bounds of pyproject.toml: installs exactly these (and the newest of what they ask
# for) into a fresh venv, runs a small sweep and the tests there.
#
#   scripts/lower_bounds.sh [pytest's arguments]      default: -n2
#
# PYTHON: the interpreter, by default python3.11, the oldest that is supported.
# LOWER_BOUNDS_VENV: where the venv is made; by default a temporary folder that is removed at the end.
# On Linux this downloads torch's CUDA build: pip's index has no other of old versions (some 3 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${LOWER_BOUNDS_VENV:-$work/venv}

"$python" -m venv "$work/uv"
"$work/uv/bin/python" -m pip install --quiet uv
uv() { "$work/uv/bin/uv" "$@"; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
uv pip compile --quiet --resolution lowest-direct --python "$venv/bin/python" \
  --extra export --extra analysis --no-annotate --no-header pyproject.toml -o "$work/lowest.txt"
# the tests' own tools are the newest: what is tested is what a user installs
uv pip install --quiet --python "$venv/bin/python" -r "$work/lowest.txt" \
  pytest pytest-timeout pytest-xdist hypothesis
grep -E '^(torch|torchvision|timm|ray|optuna|numpy|pandas|pydantic)==' "$work/lowest.txt"

export PYTHONPATH=$PWD
"$venv/bin/python" -c 'from sweeps.cli.main import main; main()' run demo --tiny "storage=$work/runs"
"$venv/bin/python" -m pytest "${@:--n2}"
