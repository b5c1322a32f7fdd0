#!/usr/bin/env bash
# All checks and measurements on a GPU, with a program that is built already (no Rust, no nvcc here), within 8 minutes:
#
#   scripts/gpu-suite.sh target/release/ptune OUTDIR
#
# Writes a log of each part and its JSON into OUTDIR, suite.json over all of them, and prints a table last. No failure stops
# the others; the exit code is 0 where all passed. benches/results/README.md says what becomes of the files.
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

DEVICE=${PTUNE_SUITE_DEVICE:-cuda}
TINY=${PTUNE_SUITE_TINY:-}
LIMIT=470  # seconds for everything
STARTED=$SECONDS
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
FAILED=0 PARTS=() TABLE=()

# note NAME STATUS SECONDS TEXT: a row of the table.
note() {
    TABLE+=("$(printf '%-22s %-8s %4ss  %s' "$1" "$2" "$3" "$4")")
    local text=${4//\\/\\\\}
    PARTS+=("    {\"name\": \"$1\", \"status\": \"$2\", \"seconds\": $3, \"summary\": \"${text//\"/\\\"}\"}")
    [ "$2" = failed ] && FAILED=1
    echo "== $1: $2 ($3 s) $4"
}

# part NAME SECONDS PATTERN COMMAND...: runs a command under a limit; its summary is the last line of its log that has the
# pattern, or of a failure the last line.
part() {
    local name=$1 limit=$2 pattern=$3 from=$SECONDS status=0 summary
    shift 3
    if [[ " ${PTUNE_SUITE_WITHOUT:-} " == *" $name "* ]]; then
        note "$name" skipped 0 "left out"
        return 0
    fi
    local left=$((LIMIT - (SECONDS - STARTED)))
    if [ "$left" -lt 5 ]; then
        note "$name" failed 0 "no time left"
        return 1
    fi
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$OUT/$name.log" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        summary=$(grep -E "$pattern" "$OUT/$name.log" | tail -1)
        note "$name" passed $((SECONDS - from)) "$(tr -s ' \t' ' ' <<<"$summary" | cut -c1-110)"
    else
        summary=$(grep -v '^$' "$OUT/$name.log" | tail -1)
        [ $status -ge 124 ] && summary="stopped after $((SECONDS - from)) s: $summary"
        note "$name" failed $((SECONDS - from)) "$(tr -s ' \t' ' ' <<<"$summary" | cut -c1-200)"
    fi
    return $status
}

# A short training into a folder.
train() {
    local folder=$1
    shift
    "$PTUNE" train --model "$MODEL" --task classification --data "$DATA" --output "$folder" --device "$DEVICE" --prefix-length 8 \
        --learning-rate 1e-2 --batch-size 8 --max-steps "$STEPS" --save-every "$EVERY" --seed 1 "$@"
}

# Two trainings are the same to the bit.
twice() {
    train "$WORK/first" && train "$WORK/second" && diff -r "$WORK/first/checkpoint-$STEPS" "$WORK/second/checkpoint-$STEPS" &&
        cmp "$WORK/first/adapter_model.safetensors" "$WORK/second/adapter_model.safetensors" && echo "same: two trainings, to the bit"
}

# A training that is interrupted and gone on with gives the bits of one that never stopped.
resumed() {
    train "$WORK/third" &
    local run=$!
    while kill -0 $run 2>/dev/null && [ ! -d "$WORK/third/checkpoint-$EVERY" ]; do sleep 0.05; done
    kill -INT $run 2>/dev/null
    wait $run
    echo "interrupted; there are: $(cd "$WORK/third" && echo checkpoint-*)"
    # It may have come to its end before the interrupt: then its last checkpoint goes, and it resumes from the one before.
    if [ -d "$WORK/third/checkpoint-$STEPS" ]; then
        rm -r "$WORK/third/checkpoint-$STEPS" "$WORK/third/train_results.json"
    fi
    train "$WORK/third" --resume && diff -r "$WORK/first/checkpoint-$STEPS" "$WORK/third/checkpoint-$STEPS" &&
        echo "same: a training that was stopped and resumed, to the bit"
}

if [ -n "$TINY" ]; then
    MODEL=tests/golden/bert-classification/model DATA=tests/golden/bert-classification/data.jsonl STEPS=6 EVERY=2
    SELFTEST=(--quick)
    LARGE=(--architecture bert-tiny --random-weights --tokens 64 --length 16 --prefix-length 4 --steps 1)
    SMALL=("${LARGE[@]}" --prefix-dropout 0)
    HUGE=("${LARGE[@]}") MICRO=16
    KERNELS=(--tokens 32 --length 16 --hidden 32 --ffn 64 --heads 2 --head-dim 16 --prefix-length 4)
    SHORT=("${KERNELS[@]}" --dtype bf16)
else
    MODEL=weights/all-MiniLM-L6-v2 DATA=examples/library-messages/train.jsonl STEPS=60 EVERY=20
    SELFTEST=()
    LARGE=(--architecture roberta-large --random-weights --tokens 16384 --length 256 --prefix-length 128)
    SMALL=(--architecture bert-large --random-weights --tokens 16384 --length 128 --prefix-length 20)
    HUGE=(--architecture glm-10b --random-weights --tokens 8192 --length 512 --prefix-length 128 --positions unshifted --steps 4)
    MICRO=2048
    KERNELS=(--tokens 16384 --length 512)
    SHORT=(--tokens 16384 --length 256 --prefix-length 128 --dtype bf16)
fi

"$PTUNE" --version
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/gpu.txt"

part selftest 150 'all checks' "$PTUNE" selftest --device "$DEVICE" "${SELFTEST[@]}"
part record-probes 20 'written' "$PTUNE" selftest --device "$DEVICE" --record "$OUT/probes.json"
part step-roberta-large 70 '^speed' "$PTUNE" bench step "${LARGE[@]}" --device "$DEVICE" --json "$OUT/step-roberta-large.json"
part kernels 60 'attention forward' "$PTUNE" bench kernels "${KERNELS[@]}" --device "$DEVICE" --json "$OUT/kernels.json"
part step-bert-large 50 '^speed' "$PTUNE" bench step "${SMALL[@]}" --device "$DEVICE" --json "$OUT/step-bert-large.json"
part kernels-bf16 40 'attention forward' "$PTUNE" bench kernels "${SHORT[@]}" --device "$DEVICE" --json "$OUT/kernels-bf16.json"
part step-glm-10b 70 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer --device "$DEVICE" --json "$OUT/step-glm-10b.json"
part step-glm-10b-streamed 90 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer --weights streamed --device "$DEVICE" \
    --json "$OUT/step-glm-10b-streamed.json"
part step-glm-10b-least 90 '^speed' "$PTUNE" bench step "${HUGE[@]}" --recompute layer --weights streamed --offload-activations \
    --micro-batch-tokens "$MICRO" --layer-major 4 --device "$DEVICE" --json "$OUT/step-glm-10b-least.json"
if [ -f "$MODEL/config.json" ]; then
    export -f train twice resumed
    export PTUNE MODEL DATA DEVICE STEPS EVERY WORK
    part train-twice 60 '^same' bash -c twice
    part stop-and-resume 40 '^same' bash -c resumed
else
    note train-twice skipped 0 "$MODEL is not here (make fetch)"
    note stop-and-resume skipped 0 "$MODEL is not here (make fetch)"
fi

{
    printf '{\n  "kind": "suite",\n  "schema": 1,\n  "program": "%s",\n  "device": "%s",\n  "tiny": %s,\n  "seconds": %s,\n  "parts": [\n' \
        "$("$PTUNE" --version)" "$DEVICE" "$([ -n "$TINY" ] && echo true || echo false)" $((SECONDS - STARTED))
    printf '%s' "${PARTS[0]}"
    printf ',\n%s' "${PARTS[@]:1}"
    printf '\n  ]\n}\n'
} >"$OUT/suite.json"
echo
printf '%s\n' "${TABLE[@]}"
echo
echo "$((SECONDS - STARTED)) s in all; logs and JSON in $OUT"
exit $FAILED
