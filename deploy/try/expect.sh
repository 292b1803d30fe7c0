# shellcheck shell=bash disable=SC2034,SC2154  # $failed is for the script that sources this, $work its folder
# `expect CODE WHAT COMMAND...` runs a command, prints its last lines, and sees that it ends with CODE.
failed=0
expect() {
    local wanted=$1 what=$2 code=0
    shift 2
    echo "--- $what"
    "$@" > "$work/said" 2>&1 || code=$?
    tail -n 4 "$work/said"
    echo "exit code $code"
    if [[ $code != "$wanted" ]]; then echo "WRONG: $wanted was expected"; failed=1; fi
    if grep -q Traceback "$work/said"; then echo "WRONG: a traceback"; failed=1; fi
}
