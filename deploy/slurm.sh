#!/bin/bash
# sbatch deploy/slurm.sh SPEC [KEY=VALUE]...    from a checkout with .venv, on a file system that all nodes share
# Options of sbatch come first and win over those here: sbatch --nodes=1 --gpus-per-node=0 deploy/slurm.sh SPEC
#SBATCH --job-name=sweep
#SBATCH --nodes=1-4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
# shellcheck source=/dev/null
source .venv/bin/activate

# who reaches a port of Ray runs code as this user: only holders of this job's token may
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# 130: asked to end, 75: Ray or a node failed; the same command goes on from the records. A job that somebody cancelled
# is no longer RUNNING, and stays ended.
finish() {
    if (($1 == 130)) || (($1 == 75 && ${SLURM_RESTART_COUNT:-0} < 10)); then
        if [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
    fi
    exit "$1"
}
driver=
trap 'if [[ $driver ]]; then kill -TERM "$driver"; else finish 130; fi' TERM

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# one task a node that may use all of the node's cores
on_nodes() { srun --nodes="$1" --ntasks="$1" --overlap --cpu-bind=none "${@:2}"; }
# shellcheck disable=SC2016  # each node has its own number of cores and GPUs
start='exec ray start --block --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" "$@"'

# the address that Ray knows the head by, ports there that nothing else listens on, and one for ray:// where that is
# installed
read -r ip port client < <(on_nodes 1 -w "$head" python -c '
import importlib.util, socket
from ray.util import get_node_ip_address
port, client = (s.getsockname()[1] for s in [socket.create_server(("", 0)) for _ in range(2)])
has_client = importlib.util.find_spec("grpc") is not None
print(get_node_ip_address(), port, f"--ray-client-server-port={client}" if has_client else "")')
address=$ip:$port

on_nodes 1 -w "$head" bash -c "$start" ray --head --node-ip-address="$ip" --port="$port" ${client:+"$client"} \
    --include-dashboard=false --min-worker-port=0 --max-worker-port=0 &
ray_head=$!
give_up_at=$((SECONDS + 180))
until (exec 3<> "/dev/tcp/$ip/$port") 2>/dev/null; do
    if ((SECONDS > give_up_at)) || ! kill -0 "$ray_head" 2>/dev/null; then
        echo "Ray's head does not answer on $address" >&2
        finish 75
    fi
    sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    on_nodes $((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" bash -c "$start" ray --address="$address" \
        --min-worker-port=0 --max-worker-port=0 &
    # nodes that have not come after two minutes are not waited for: they join when they can
    python - "$address" "$SLURM_JOB_NUM_NODES" <<'EOF' || true
import sys
import time
import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
give_up_at = time.monotonic() + 120
alive = 0
while alive < int(sys.argv[2]) and time.monotonic() < give_up_at:
    time.sleep(1)
    alive = sum(node["Alive"] for node in ray.nodes())
print(f"{alive} of {sys.argv[2]} nodes are there", flush=True)
EOF
fi

# two minutes before the time limit Slurm sends TERM: the driver records as interrupted what runs, and ends with 130;
# with 75 where Ray or a node failed
sweeps run "$@" --address "$address" --no-ship &
driver=$!
wait $driver || true
code=0
wait $driver || code=$?
finish "$code"
