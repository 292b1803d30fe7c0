#!/bin/bash
# deploy/slurm.sh on a Slurm of one node: submitted, stopped two minutes before its limit, queued again, gone on, ended;
# and another job, cancelled by scancel, which stays ended.
#
# bash deploy/try/slurm.sh [WORKDIR]     as root on Debian, after apt-get install slurm-wlm munge; some 8 minutes
#
# Starts munged, slurmctld and slurmd of its own, with their files in WORKDIR and ports on this machine only.
set -euo pipefail
work=$(realpath "${1:-$(mktemp -d -t try-slurm.XXXXXX)}")
mkdir -p "$work"/{state,spool,munge}
host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf

dd if=/dev/urandom of="$work/munge/key" bs=1 count=256 status=none
chmod 700 "$work/munge" && chmod 400 "$work/munge/key"
cat > "$SLURM_CONF" <<EOF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldPort=6917
SlurmdPort=6918
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF

munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" 2> "$work/munged.log" &
daemons=($!)
# Slurm's daemons take a minute to end: nobody needs them any more
trap 'kill -KILL "${daemons[@]}" 2>/dev/null || true' EXIT
for _ in {1..50}; do [[ -S $work/munge/socket ]] && break; sleep 0.2; done
slurmctld -D -i 2> "$work/slurmctld.err" &
daemons+=($!)
slurmd -D -N "$host" 2> "$work/slurmd.err" &
daemons+=($!)
for _ in {1..60}; do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo --version
sinfo

cat > "$work/spec.yaml" <<EOF
name: tried
storage: $work/runs
source: {model: resnet20_cifar, args: {width: 8}}
data: {dataset: digits, val_fraction: 0.25}
stages: {finetune: {epochs: 6, augment: none}}
objectives:
  - {metric: accuracy, mode: max}
  - {metric: gmacs, mode: min}
search: {sampler: random, trials: ${TRIALS:-60}, space: {stages.finetune.lr: {low: 1.0e-4, high: 1.0e-1, log: true}}}
measure: {latency: false}
resources: {concurrent: 1}
EOF
submit() {
    sbatch --parsable --gpus-per-node=0 --time="${MINUTES:-4}" --output="$work/$1.log" deploy/slurm.sh "$work/spec.yaml" \
        "name=$1"
}
job=$(submit tried)
echo "job $job"
state() { scontrol show job "$job" | grep -oP "$1=\K\S+"; }
before=
for _ in {1..3600}; do
    now="$(state JobState) after $(state Restarts) restarts"
    if [[ $now != "$before" ]]; then echo "$(date +%T) $now"; before=$now; fi
    # a job that queues again waits for two minutes, unless somebody has no patience
    if [[ $now == PENDING* ]]; then scontrol update "JobId=$job" StartTime=now 2>/dev/null || true; fi
    [[ $now == @(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)* ]] && break
    sleep 1
done
ended="$now"
echo "--- the job's own log"
cat "$work/tried.log"
echo "--- what the run holds"
sweeps status "$work/runs/tried"

echo "--- a job that is cancelled while its trials run"
job=$(submit cancelled)
for _ in {1..120}; do [[ -e $work/runs/cancelled/trials ]] && break; sleep 1; done
scancel "$job"
for _ in {1..90}; do [[ $(state JobState) == CANCELLED ]] && break; sleep 1; done
cancelled="$(state JobState) after $(state Restarts) restarts"
echo "$cancelled"
sweeps status "$work/runs/cancelled"
[[ $ended == COMPLETED* && $ended != *" 0 restarts" && $cancelled == "CANCELLED after 0 restarts" ]]
