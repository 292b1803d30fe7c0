#!/bin/bash
# A sweep that MLflow (a server, and SQLite), W&B (offline), TensorBoard and optuna-dashboard follow while it runs.
#
# bash deploy/try/trackers.sh [WORKDIR]     needs pip install -e '.[mlflow,wandb,watch]' tensorboard
set -uo pipefail
here=$(dirname "$(realpath "$0")")
work=$(realpath "${1:-$(mktemp -d -t try-trackers.XXXXXX)}")
export WANDB_MODE=offline WANDB_DIR=$work WANDB_SILENT=true
read -r mlflow_port board_port < <(python "$here/free_ports.py" 2)
python -c 'import importlib.metadata as m
for name in ("mlflow", "wandb", "tensorboard", "optuna-dashboard"): print(name, m.version(name))'
run=$work/runs/tried
failed=0

mlflow server --host 127.0.0.1 --port "$mlflow_port" --backend-store-uri "sqlite:///$work/server.db" \
    --default-artifact-root "$work/artifacts" > "$work/mlflow.log" 2>&1 &
server=$!
board=
trap 'kill $server $board 2>/dev/null' EXIT
for _ in {1..300}; do (exec 3<> "/dev/tcp/127.0.0.1/$mlflow_port") 2>/dev/null && break; sleep 1; done

echo "--- MLflow's server and W&B offline, with optuna-dashboard beside"
sweeps run "$here/small.yaml" storage="$work/runs" search.trials=8 \
    trackers.mlflow.tracking_uri="http://127.0.0.1:$mlflow_port" trackers.wandb.project=tried > "$work/said" 2>&1 &
driver=$!
until [[ -e $run/study.journal ]]; do sleep 0.2; kill -0 $driver || break; done
optuna-dashboard --host 127.0.0.1 --port "$board_port" "$run/study.journal" > "$work/board.log" 2>&1 &
board=$!
python - "$board_port" "$driver" <<'EOF' || failed=1
import json
import os
import sys
import time
import urllib.request

place = f"http://127.0.0.1:{sys.argv[1]}/api/studies"
seen = None
while seen is None:
    os.kill(int(sys.argv[2]), 0)  # the sweep runs
    try:
        studies = json.load(urllib.request.urlopen(place))["study_summaries"]
        study = json.load(urllib.request.urlopen(f"{place}/{studies[0]['study_id']}"))
        states = [trial["state"] for trial in study["trials"]]
        seen = states if "Running" in states and "Complete" in states else None
    except (OSError, LookupError):
        pass
    time.sleep(0.5)
print(f"optuna-dashboard's API while trials run: study {studies[0]['study_name']!r}, {seen}")
EOF
wait $driver || failed=1
tail -n 4 "$work/said"
grep -i "warning" "$work/said" && failed=1

echo "--- MLflow on SQLite"
sweeps run "$here/small.yaml" name=sqlite storage="$work/runs" \
    trackers.mlflow.tracking_uri="sqlite:///$work/mlflow.db" > "$work/said" 2>&1 || failed=1
grep -i "warning" "$work/said" && failed=1

python - "$work" "$run" <<'EOF' || failed=1
import sys
from pathlib import Path

import mlflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

work, run = map(Path, sys.argv[1:])
for base, wanted in ((work / "server.db", 8), (work / "mlflow.db", 4)):
    mlflow.set_tracking_uri(f"sqlite:///{base}")
    found = mlflow.search_runs(search_all_experiments=True)
    named = sorted(name for name in found.columns if name.startswith(("metrics.", "params.")))
    print(f"{base.name}: {len(found)} runs, {set(found['status'])}, {named}")
    assert len(found) == wanted
offline = list(run.glob("wandb/offline-run-*"))
print(f"W&B: {len(offline)} runs offline")
assert len(offline) == 8
folders = sorted((run / "tensorboard").iterdir())
events = EventAccumulator(str(folders[0]))
events.Reload()
print(f"TensorBoard: {len(folders)} trials; {events.Tags()['scalars']}")
assert len(folders) == 8
EOF
exit $failed
