#!/usr/bin/env bash
# The whole chain: prune the vocabulary, sparsify the body, heal, serve, compare with the original.
#
#   examples/prune_sparsify_heal_serve.sh MODEL FOLDER LANGUAGE=FILE...
#   examples/prune_sparsify_heal_serve.sh models/gemma build/chain ko=korean.txt en=english.txt
#
# MODEL is a folder. The texts choose the weights that become zero, and train the result. FOLDER gets
# pruned/, sparse/, healed/ (what you serve) and gate/ with report.html and report.json. A step whose
# folder is there is not repeated; an interrupted one goes on.
#
# Exit codes are those of examples/ci_gate.sh: 0 the result passed; 1 some metric is worse than the
# original's, and is printed; 2 a mistake; 3 a server died. Half of the weights of a small model are
# not given away for nothing: expect 1, and read the report.
#
#   PROFILE        languages that the vocabulary keeps (enko)
#   SPARSIFY_ARGS  more arguments for kprune sparsify: SPARSIFY_ARGS="--samples 32 --length 512"
#   HEAL_ARGS      more arguments for kprune heal: HEAL_ARGS="--minutes 30 --keep-within en=1%"
#   VLLM_ARGS, COMPARE_ARGS  as in examples/ci_gate.sh
set -euo pipefail

usage() { sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0"; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 3 ]] || { usage >&2; exit 2; }
model=$1
folder=$2
shift 2
read -ra sparsify_args <<<"${SPARSIFY_ARGS:-}"
read -ra heal_args <<<"${HEAL_ARGS:-}"
calibration=()
text=()
for file in "$@"; do
    calibration+=(--calibration "$file")
    text+=(--text "$file")
done

step() { # NAME COMMAND...: run a command whose output is FOLDER/NAME, unless that is there
    local output=$folder/$1
    shift
    [[ -d $output ]] || { echo "== $*" && "$@" -o "$output"; }
}

mkdir -p "$folder"
step pruned kprune build "$model" --profile "${PROFILE:-enko}" --export
step sparse kprune sparsify "$folder/pruned" "${calibration[@]}" "${sparsify_args[@]}"
step healed kprune heal "$folder/sparse" "${text[@]}" "${heal_args[@]}"

echo "== serve $model and $folder/healed, and compare them"
# Weights changed, so other answers are no fault: only metrics that got worse fail the gate.
FAIL_ON=worse "$(dirname "$0")/ci_gate.sh" "$model" "$folder/healed" "$folder/gate"
echo "== passed: vllm serve $folder/healed"
