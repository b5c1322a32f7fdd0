#!/usr/bin/env bash
# All checks and measurements on a GPU, with a program that is built already (no Rust, no nvcc here), within 8 minutes:
#
#   scripts/gpu-suite.sh target/release/ptune OUTDIR
#
# OUTDIR gets three files: suite.json with what passed and all that was measured, suite.log with what every part said, and
# probes.json with what the GPU made of single instructions. They are written anew after each part, so that what was measured
# stays when the machine goes away. A table comes last. No failure stops the other parts; the exit code is 0 where all passed.
# benches/results/README.md says what becomes of the files.
#
# PTUNE_SUITE_DEVICE: another device than cuda. PTUNE_SUITE_TINY=1: tiny shapes, to try the script on any machine.
# PTUNE_SUITE_WITHOUT="NAME NAME": parts to leave out.
set -uo pipefail

[ $# -eq 2 ] || { echo "usage: scripts/gpu-suite.sh PTUNE OUTDIR" >&2; exit 2; }
[ -x "$1" ] || { echo "$1: there is no program; build it with make" >&2; exit 2; }
PTUNE=$(realpath "$1")
mkdir -p "$2" && OUT=$(realpath "$2") || exit 2
cd "$(dirname "$0")/.." || exit 2

# cuBLAS of a Python environment, also where python3 is a wrapper, which the program's own search does not see through.
if LIBRARIES=$(python3 -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0] + "/lib")' 2>/dev/null); then
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$LIBRARIES
fi
# A product that cuBLASLt refuses is refused with the reason.
export CUBLASLT_LOG_LEVEL=${CUBLASLT_LOG_LEVEL:-1}

DEVICE=${PTUNE_SUITE_DEVICE:-cuda}
TINY=${PTUNE_SUITE_TINY:-}
LIMIT=470  # seconds for everything
STARTED=$SECONDS
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
FAILED=0 PARTS=() TABLE=()
VERSION=$("$PTUNE" --version)
: >"$OUT/suite.log"
rm -f "$OUT/suite.json" "$OUT/probes.json"

# Writes suite.json: the parts that there were so far, each with the JSON that it wrote.
write_json() {
    local text
    printf -v text '{\n  "kind": "suite",\n  "schema": 1,\n  "program": "%s",\n  "device": "%s",\n  "tiny": %s,\n  "seconds": %s,\n  "parts": [' \
        "$VERSION" "$DEVICE" "$([ -n "$TINY" ] && echo true || echo false)" $((SECONDS - STARTED))
    local separator=$'\n'
    for part in "${PARTS[@]}"; do
        text+=$separator$part
        separator=$',\n'
    done
    printf '%s\n  ]\n}\n' "$text" >"$OUT/suite.json.tmp" && mv "$OUT/suite.json.tmp" "$OUT/suite.json"
}

# note NAME STATUS SECONDS TEXT: a row of the table, and what the part measured, where it wrote that.
note() {
    TABLE+=("$(printf '%-22s %-8s %4ss  %s' "$1" "$2" "$3" "$4")")
    local text=${4//\\/\\\\} measured=
    [ "$2" = passed ] && [ -s "$WORK/$1.json" ] && measured=", \"measured\": $(<"$WORK/$1.json")"
    PARTS+=("    {\"name\": \"$1\", \"status\": \"$2\", \"seconds\": $3, \"summary\": \"${text//\"/\\\"}\"$measured}")
    [ "$2" = passed ] || FAILED=1
    echo "== $1: $2 ($3 s) $4"
    write_json
}

# A line without what JSON or a table would stumble over.
plain() { tr -s ' \t' ' ' <<<"$1" | LC_ALL=C tr -cd '\40-\176'; }

# part NAME SECONDS PATTERN COMMAND...: runs a command under a limit; its summary is the last line of what it said that has the
# pattern, or of a failure the last line, and the lines before it are shown at once.
part() {
    local name=$1 limit=$2 pattern=$3 from=$SECONDS status=0 summary log=$WORK/$1.log
    shift 3
    [[ " ${PTUNE_SUITE_WITHOUT:-} " == *" $name "* ]] && return 0
    local left=$((LIMIT - (SECONDS - STARTED)))
    if [ "$left" -lt 5 ]; then
        note "$name" failed 0 "no time left"
        return 1
    fi
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$log" 2>&1 || status=$?
    { echo "==== $name: $*"; cat "$log"; } >>"$OUT/suite.log"
    if [ $status -eq 0 ]; then
        summary=$(grep -E "$pattern" "$log" | tail -1)
        note "$name" passed $((SECONDS - from)) "$(plain "$summary" | cut -c1-110)"
    else
        summary=$(grep -v '^$' "$log" | tail -1)
        [ $status -ge 124 ] && summary="stopped after $((SECONDS - from)) s: $summary"
        grep -v '^$' "$log" | tail -25 | cut -c1-250
        note "$name" failed $((SECONDS - from)) "$(plain "$summary" | cut -c1-200)"
    fi
    return $status
}

# measure NAME SECONDS PATTERN COMMAND...: a part whose command is told where to write its JSON.
measure() { part "$@" --device "$DEVICE" --json "$WORK/$1.json"; }

# line FOLDER ARGUMENT...: LINE becomes the command of a short training into a folder.
line() {
    LINE=("$PTUNE" train --architecture "$MODEL" --random-weights --tokenizer tests/golden/bert-classification/model
        --task classification --data examples/library-messages/train.jsonl --output "$1" --device "$DEVICE" --prefix-length 8
        --learning-rate 1e-2 --batch-size 8 --max-steps "$STEPS" --save-every "$EVERY" --seed 1 "${@:2}")
}
train() { line "$@" && "${LINE[@]}"; }

# Two trainings are the same to the bit.
twice() {
    train "$WORK/first" && train "$WORK/second" && diff -r "$WORK/first/checkpoint-$STEPS" "$WORK/second/checkpoint-$STEPS" &&
        cmp "$WORK/first/adapter_model.safetensors" "$WORK/second/adapter_model.safetensors" && echo "same: two trainings, to the bit"
}

# A training that is interrupted and gone on with gives the bits of one that never stopped.
resumed() {
    [ -d "$WORK/first/checkpoint-$STEPS" ] || train "$WORK/first" || return 1
    line "$WORK/third"
    "${LINE[@]}" &  # the program itself, so that the interrupt reaches it
    local run=$!
    while kill -0 $run 2>/dev/null && [ ! -d "$WORK/third/checkpoint-$EVERY" ]; do sleep 0.02; done
    kill -INT $run
    wait $run
    local code=$?
    echo "ended with $code; there are: $(cd "$WORK/third" && echo checkpoint-*)"
    if [ $code -ne 130 ] || [ ! -d "$WORK/third/checkpoint-$EVERY" ] || [ -d "$WORK/third/checkpoint-$STEPS" ]; then
        echo "it was not interrupted in its midst"
        return 1
    fi
    train "$WORK/third" --resume && diff -r "$WORK/first/checkpoint-$STEPS" "$WORK/third/checkpoint-$STEPS" &&
        echo "same: a training that was stopped and resumed, to the bit"
}

if [ -n "$TINY" ]; then
    MODEL=bert-tiny STEPS=6 EVERY=2
    SELFTEST=(--quick)
    LARGE=(--architecture bert-tiny --random-weights --tokens 64 --length 16 --prefix-length 4 --steps 1)
    SMALL=("${LARGE[@]}" --prefix-dropout 0)
    HUGE=("${LARGE[@]}") MICRO=16
    KERNELS=(--tokens 32 --length 16 --hidden 32 --ffn 64 --heads 2 --head-dim 16 --prefix-length 4)
    SHORT=("${KERNELS[@]}" --dtype bf16)
else
    MODEL=minilm-l6 STEPS=1000 EVERY=100
    SELFTEST=()
    LARGE=(--architecture roberta-large --random-weights --tokens 16384 --length 256 --prefix-length 128)
    SMALL=(--architecture bert-large --random-weights --tokens 16384 --length 128 --prefix-length 20)
    HUGE=(--architecture glm-10b --random-weights --tokens 8192 --length 512 --prefix-length 128 --positions unshifted --steps 4)
    MICRO=2048
    KERNELS=(--tokens 16384 --length 512)
    SHORT=(--tokens 16384 --length 256 --prefix-length 128 --dtype bf16)
fi

echo "$VERSION"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

part selftest 180 'all checks' "$PTUNE" selftest --device "$DEVICE" "${SELFTEST[@]}"
[ "$DEVICE" = cpu ] || part record-probes 20 'written' "$PTUNE" selftest --device "$DEVICE" --record "$OUT/probes.json"
measure step-roberta-large 70 '^speed' "$PTUNE" bench step "${LARGE[@]}"
measure kernels 60 'attention forward' "$PTUNE" bench kernels "${KERNELS[@]}"
measure step-bert-large 50 '^speed' "$PTUNE" bench step "${SMALL[@]}"
measure kernels-bf16 40 'attention forward' "$PTUNE" bench kernels "${SHORT[@]}"
measure step-glm-10b 70 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer
measure step-glm-10b-streamed 90 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer --weights streamed
measure step-glm-10b-least 90 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer --weights streamed --offload-activations \
    --micro-batch-tokens "$MICRO" --layer-major 4
export -f line train twice resumed
export PTUNE MODEL DEVICE STEPS EVERY WORK
part train-twice 60 '^same' bash -c twice
part stop-and-resume 40 '^same' bash -c resumed

write_json
echo
printf '%s\n' "${TABLE[@]}"
echo
echo "$((SECONDS - STARTED)) s in all; suite.json, suite.log and probes.json in $OUT"
exit $FAILED
