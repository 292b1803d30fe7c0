#!/bin/bash
# sbatch deploy/slurm.sh SPEC [KEY=VALUE]...    from a checkout with .venv, on a file system that all nodes share
#SBATCH --job-name=sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail
source .venv/bin/activate
export RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}'):6379
per_node=(--num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
    ray start --head --port=6379 --block "${per_node[@]}" &
sleep 15
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --overlap --exclude="$head" \
        ray start --address="$address" --block "${per_node[@]}" &
    sleep 15
fi

# two minutes before the time limit Slurm sends TERM: the driver records as interrupted what runs, and ends with 130;
# with 75 where Ray or a node failed
sweeps run "$@" --address "$address" --no-ship &
driver=$!
trap 'kill -TERM $driver' TERM
wait $driver || true
code=0
wait $driver || code=$?
if ((code == 130)) || ((code == 75 && ${SLURM_RESTART_COUNT:-0} < 10)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
