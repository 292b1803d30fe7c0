#!/bin/bash
# A sweep whose run lies in an S3 on this machine, named as MinIO and Ceph are (endpoint_override, scheme); resumed from
# "another machine"; and a store that goes away amid a sweep.
#
# bash deploy/try/s3.sh [WORKDIR]     needs moto: pip install 'moto[server,s3]'
set -uo pipefail
here=$(dirname "$(realpath "$0")")
work=$(realpath "${1:-$(mktemp -d -t try-s3.XXXXXX)}")
export AWS_ACCESS_KEY_ID=try AWS_SECRET_ACCESS_KEY=try AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
read -r port < <(python "$here/free_ports.py" 1)
python -c 'import importlib.metadata as m; print("moto", m.version("moto"), "pyarrow", m.version("pyarrow"))'

serve() {
    moto_server -H 127.0.0.1 -p "$port" > "$work/moto.log" 2>&1 &
    server=$!
    for _ in {1..180}; do (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 1; done
}
trap 'kill $server 2>/dev/null' EXIT
serve
python - "$port" <<'EOF'
import sys
import boto3

boto3.client("s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}").create_bucket(Bucket="bucket")
EOF
query="?endpoint_override=127.0.0.1:$port&scheme=http"
storage="s3://bucket/runs$query" run="s3://bucket/runs/tried$query"

# shellcheck source=deploy/try/expect.sh
source "$here/expect.sh"
export SWEEPS_MIRROR=$work/one
expect 2 "a bucket that is not there" sweeps validate "$here/small.yaml" storage="s3://nowhere/runs$query"
expect 0 "a sweep" sweeps run "$here/small.yaml" storage="$storage"
export SWEEPS_MIRROR=$work/two
expect 0 "status, elsewhere" sweeps status "$run"
expect 0 "resumed elsewhere, two trials more" sweeps resume "$run" search.trials=6
expect 0 "analysis.load" python -c 'import sys, analysis; print(len(analysis.load(sys.argv[1]).trials), "trials")' "$run"

echo "--- the store goes away amid a sweep of six more, and comes back"
sweeps resume "$run" search.trials=12 > "$work/said" 2>&1 &
driver=$!
until grep -q 00006 "$work/said"; do sleep 0.2; kill -0 $driver || break; done
kill $server
wait $driver
echo "exit code $?"
tail -n 4 "$work/said"
grep -c Traceback "$work/said"
# moto keeps everything in memory, so that the bucket is empty now: this machine's mirror has all
serve
python - "$port" <<'EOF'
import sys
import boto3

boto3.client("s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}").create_bucket(Bucket="bucket")
EOF
expect 0 "the same command again" sweeps run "$here/small.yaml" storage="$storage" search.trials=12
expect 0 "what the run holds" sweeps status "$run"
exit $failed
