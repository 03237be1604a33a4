#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job on real input: `demo.sh MODEL ENGINE` splits the model in three, proves the split, and runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=$1 ENGINE=$2
STAGES=demo/$(basename "$MODEL")
QUESTION=${QUESTION:-What is the capital of France?}

# Show a command as one would type it, then run it.
run() {
    local word
    printf '\n$'
    for word; do
        if [[ $word == *[!A-Za-z0-9_./:=,+-]* ]]; then printf " '%s'" "$word"; else printf ' %s' "$word"; fi
    done
    printf '\n'
    "$@"
}

PATH=$PWD/.venv/bin:$PATH
run zpptool split "$MODEL" --num-stages 3 --output-dir "$STAGES" --force
run zpptool validate "$STAGES" --model "$MODEL"
run zpptool test-pipeline --pipeline-dir "$STAGES" --model "$MODEL" --engine "$ENGINE" \
    --chat --test-input "$QUESTION" --no-long-prompts --log-dir demo/logs --report demo/report.json
