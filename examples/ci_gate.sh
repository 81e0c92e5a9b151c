#!/usr/bin/env bash
# A gate for continuous integration: is the pruned model still good enough to ship?
#
#   examples/ci_gate.sh MODEL OVERLAY [FOLDER]
#
# Serves a model and its overlay (`kprune build MODEL --profile enko -o OVERLAY`), compares them, and
# writes report.html and report.json to FOLDER (build/gate). The gate fails if any metric is worse, or
# if an answer differs for no known reason. Exit codes: 0 passed; 1 a --fail-on condition is met, and
# is printed; 2 a mistake, such as a model that cannot be served; 3 a server died during the
# comparison. An interrupted run (130, 143) resumes when it is started again with the same FOLDER. If
# the endpoints are running already, the `kprune compare` below is all that is needed.
#
#   FAIL_ON       what fails the gate, instead of the above: FAIL_ON="stability.worse decode_ratio<1.2?"
#   VLLM_ARGS     more arguments for both servers, which use 0.3 of the memory each; later ones win:
#                 VLLM_ARGS="--enforce-eager --gpu-memory-utilization 0.2"
#   COMPARE_ARGS  more arguments for the comparison: COMPARE_ARGS="--limit 4 --rounds 3"
set -euo pipefail

usage() { sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0"; }

mistake() { echo "$0: $1" >&2; exit 2; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
for name in "$1" "$2"; do
    [[ -d $name ]] || mistake "'$name' is not a folder; MODEL and OVERLAY must be folders on this machine"
done
model=$(realpath "$1")
overlay=$(realpath "$2")
folder=${3:-build/gate}
mkdir -p "$folder"
read -ra vllm_args <<<"${VLLM_ARGS:-}"
read -ra compare_args <<<"${COMPARE_ARGS:-}"
read -ra fail_on <<<"${FAIL_ON:-worse exactness.unexplained>0}"
export -n VLLM_ARGS # vLLM warns about VLLM_ variables that it does not know

serve() { # FOLDER PORT NAME
    ! (: <"/dev/tcp/127.0.0.1/$2") 2>/dev/null || mistake "port $2 is in use: stop the program that listens there"
    set -m # a separate process group, for everything that vLLM starts
    vllm serve "$1" --plugin kprune --host 127.0.0.1 --port "$2" --served-model-name "$3" \
        --max-model-len 2048 --gpu-memory-utilization 0.3 "${vllm_args[@]}" >"$folder/$3.log" 2>&1 &
    set +m
    servers[$3]=$!
}

alive() { # otherwise prints why each dead server ended
    local name log dead=0
    for name in "${!servers[@]}"; do
        kill -0 "${servers[$name]}" 2>/dev/null && continue
        dead=1 log=$folder/$name.log
        echo "$0: the server of the $name model has ended; $log:" >&2
        if grep -q Error "$log"; then grep Error "$log" | tail -n 3; else tail -n 5 "$log"; fi >&2
    done
    return $dead
}

stop() { # PID...: vLLM ignores one SIGTERM while it starts
    local signal pid running
    for signal in TERM TERM KILL; do
        for _ in {1..20}; do
            running=()
            for pid in "$@"; do kill -0 -- "-$pid" 2>/dev/null && running+=("-$pid"); done
            [[ ${#running[@]} -gt 0 ]] || return 0
            [[ -z $signal ]] || kill -s "$signal" -- "${running[@]}" 2>/dev/null || true
            signal=
            sleep 0.5
        done
    done
}

declare -A servers=()
compare=()
# the comparison first, as it keeps its answers; a second signal does not speed up the end
trap 'trap "" INT TERM; stop "${compare[@]}"; stop "${servers[@]}"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "starting both servers (logs: $folder/original.log, $folder/pruned.log)"
serve "$model" 8100 original
serve "$overlay" 8101 pruned
for port in 8100 8101; do
    until curl --silent --fail --noproxy '*' "http://127.0.0.1:$port/health"; do
        alive || exit 2
        sleep 2
    done
done

echo "comparing $model and $overlay (report: $folder/report.html)"
set -m
kprune compare --original http://127.0.0.1:8100/v1 --pruned http://127.0.0.1:8101/v1 \
    --suite stability --suite exactness --suite latency --limit 40 --output "$folder" \
    --fail-on "${fail_on[@]}" \
    "${compare_args[@]}" &
set +m
compare=($!)
code=0
wait "${compare[0]}" || code=$?
compare=()
alive || true
exit "$code"
