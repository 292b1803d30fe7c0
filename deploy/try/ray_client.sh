#!/bin/bash
# A sweep through Ray's client (ray://) on a head that asks for a token, and what one without the token gets.
#
# bash deploy/try/ray_client.sh [WORKDIR]     needs ray[client]: pip install -e '.[client]'
set -uo pipefail
here=$(dirname "$(realpath "$0")")
work=$(realpath "${1:-$(mktemp -d -t try-ray.XXXXXX)}")
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
read -r port client < <(python "$here/free_ports.py" 2)
ray --version

ray start --block --head --node-ip-address=127.0.0.1 --port="$port" --ray-client-server-port="$client" --num-cpus=2 \
    --include-dashboard=false --temp-dir="$work/ray" > "$work/head.log" 2>&1 &
head=$!
trap 'kill $head; wait $head 2>/dev/null' EXIT
for _ in {1..180}; do (exec 3<> "/dev/tcp/127.0.0.1/$client") 2>/dev/null && break; sleep 1; done

# shellcheck source=deploy/try/expect.sh
source "$here/expect.sh"
for address in "ray://127.0.0.1:$client" "127.0.0.1:$port"; do
    expect 2 "no token, $address" env -u RAY_AUTH_TOKEN RAY_AUTH_MODE=disabled \
        sweeps run "$here/small.yaml" storage="$work/runs" --address "$address"
    expect 2 "another token, $address" env RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef \
        sweeps run "$here/small.yaml" storage="$work/runs" --address "$address"
done
[[ -e $work/runs/tried/trials ]] && { echo "WRONG: trials are there"; failed=1; }
expect 0 "the token, through Ray's client" \
    sweeps run "$here/small.yaml" storage="$work/runs" --address "ray://127.0.0.1:$client"
expect 0 "the token, head's port, two trials more" \
    sweeps run "$here/small.yaml" storage="$work/runs" search.trials=6 --address "127.0.0.1:$port"
expect 0 "what the run holds" sweeps status "$work/runs/tried"
exit $failed
