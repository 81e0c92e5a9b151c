#!/usr/bin/env bash
# A gate for continuous integration: is the pruned model still good enough to ship?
#
#   examples/ci_gate.sh MODEL OVERLAY [FOLDER]
#
# Serves a model and its overlay (`kprune build MODEL --profile enko -o OVERLAY`), compares them, and
# leaves report.html and report.json in FOLDER (build/gate). Exit code 0: all conditions hold; 1: one
# does not, and is named; 2: a mistake, such as a model that cannot be served. A run that was broken off
# goes on where it was when it is started again with the same FOLDER. With endpoints that run already, the
# last command is all that is needed.
set -euo pipefail
model=${1:?"usage: $0 MODEL OVERLAY [FOLDER]"}
overlay=${2:?"usage: $0 MODEL OVERLAY [FOLDER]"}
folder=${3:-build/gate}
mkdir -p "$folder"

serve() { # FOLDER PORT NAME
    vllm serve "$1" --plugin kprune --host 127.0.0.1 --port "$2" --served-model-name "$3" \
        --max-model-len 2048 >"$folder/$3.log" 2>&1 &
    pids+=($!)
}

alive() {
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || { tail -n 20 "$folder"/*.log >&2; exit 2; }
    done
}

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait' EXIT
serve "$model" 8100 original
serve "$overlay" 8101 pruned
for port in 8100 8101; do
    until curl --silent --fail --noproxy '*' "http://127.0.0.1:$port/health"; do
        alive
        sleep 2
    done
done

kprune compare --original http://127.0.0.1:8100/v1 --pruned http://127.0.0.1:8101/v1 \
    --suite stability --suite exactness --suite latency --limit 40 --output "$folder" \
    --fail-on "stability<-0.02" --fail-on "exactness.unexplained>0" --fail-on "decode_ratio<1.0"
