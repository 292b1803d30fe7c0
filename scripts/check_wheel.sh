#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh venv outside the checkout, and runs a small sweep there.
#
#   scripts/check_wheel.sh            installs the dependencies that the wheel declares
#   scripts/check_wheel.sh --quick    takes the libraries of the present environment instead, so it
#                                     does not show whether the declared dependencies suffice
#
# PYTHON: the interpreter, by default .venv/bin/python if there is one.
# PIP_ARGS: further arguments of pip install, for example a constraints file.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# built from a copy: setuptools leaves build/ and *.egg-info beside the sources
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE compression_sweeps.py analysis compress sweeps trainers "$work/source"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work/source"
wheel=$(echo "$work"/dist/compression_sweeps-*.whl)
echo "built $(basename "$wheel")"

if [ "${1:-}" = --quick ]; then
  "$python" -m venv --without-pip "$work/venv"
  libraries=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    > "$libraries/present_environment.pth"
  "$python" -m pip --python "$work/venv/bin/python" install --quiet --no-deps --force-reinstall "$wheel"
else
  "$python" -m venv "$work/venv"
  # shellcheck disable=SC2086
  "$work/venv/bin/python" -m pip install --quiet ${PIP_ARGS:-} "$wheel"
fi

cd "$work"
unset PYTHONPATH
venv/bin/python - <<'CHECK'
import importlib.metadata
import sys
from importlib import resources

for package in ("analysis", "compress", "sweeps", "trainers"):
    folder = resources.files(package)
    assert str(folder).startswith(sys.prefix), f"{folder} is not the wheel's"
    assert (folder / "py.typed").is_file(), package
assert (resources.files("sweeps") / "presets" / "demo.yaml").is_file()
assert (resources.files("analysis") / "report" / "assets" / "report.css").is_file()
print("installed", importlib.metadata.version("compression-sweeps"))
CHECK
venv/bin/sweeps presets > /dev/null
venv/bin/sweeps run demo --tiny "storage=$work/runs"
test -s "$work/runs/demo/report.html" || { ls "$work"/runs/*; exit 1; }
echo "the wheel runs the demo"
