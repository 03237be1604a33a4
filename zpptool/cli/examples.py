# SPDX-License-Identifier: Apache-2.0
"""The examples under each command's help: command lines that are valid as they are."""

from __future__ import annotations

EXAMPLES = {
    "chat": ("zpptool chat 'What is a pipeline?'", "zpptool chat --url http://10.0.0.1:8000 --system 'Be brief.'"),
    "complete": ("zpptool complete 'The capital of France is' --max-tokens 16",),
    "bench": ("zpptool bench --num-prompts 200 --input-len 512 --output-len 128 --max-concurrency 32 --json",),
    "split": (
        "zpptool split MODEL --num-stages 4 --output-dir stages",
        "zpptool split MODEL --ranges 0-7 7-19 19-30 --dry-run --explain",
        "zpptool split hf://org/name@main --num-stages 4 --stage 1 --output-dir stages",
    ),
    "join": ("zpptool join stages --output-dir MODEL",),
    "validate": ("zpptool validate stages --model MODEL", "zpptool validate zpp.yaml"),
    "validate-ranges": (
        "zpptool validate-ranges --ranges 0-8 8-16 --total-layers 16",
        "zpptool validate-ranges --model MODEL --num-stages 4",
    ),
    "fetch": (
        "zpptool fetch org/name",
        "zpptool fetch org/name --num-stages 4 --stage 1",
        "zpptool fetch s3://bucket/model --ranges 0-7 7-19 19-30 --stage 2 --output-dir stages",
    ),
    "cache list": ("zpptool cache list", "zpptool cache list --json"),
    "cache remove": ("zpptool cache remove org/name", "zpptool cache remove --all"),
    "plan-ports": (
        "zpptool plan-ports --num-stages 4 --check",
        "zpptool plan-ports --num-stages 2 --hosts 10.0.0.1,10.0.0.2",
    ),
    "profile": (
        "zpptool profile MODEL --kind a100-80g -o a100.yaml",
        "zpptool profile MODEL --engine transformers --device cpu --seconds 30 -o cpu.yaml",
        "zpptool profile --links --listen 10.0.0.2:15600 --peer 10.0.0.1:15600 --respond",
        "zpptool profile --links --listen 10.0.0.1:15600 --peer 10.0.0.2:15600 -o links.yaml",
    ),
    "plan": (
        "zpptool plan MODEL --num-stages 2 --hosts 10.0.0.1,10.0.0.2 -o zpp.yaml",
        "zpptool plan MODEL --num-stages 2 -o zpp.yaml -- --max-model-len 4096",
        "zpptool plan org/name --num-stages 2 --hosts 10.0.0.1,10.0.0.2 --invite-dir invites",
        "zpptool plan MODEL --devices devices.yaml -o zpp.yaml",
    ),
    "deploy": (
        "zpptool deploy kubernetes --plan zpp.yaml --model hf://org/name@main -o manifests",
        "zpptool deploy helm --plan zpp.yaml --model hf://org/name@main --values values.yaml -o chart",
        "zpptool deploy compose --plan zpp.yaml --model /models/name --device cpu -o compose",
        "zpptool deploy systemd --plan zpp.yaml -o units",
    ),
    "config show": ("zpptool config show --all --json", "zpptool config show plan-ports --num-stages 4"),
    "keys generate": (
        "zpptool keys generate --num-stages 3",
        "zpptool keys generate --num-stages 3 --output-dir secrets --force",
    ),
    "keys show": ("zpptool keys show keys", "zpptool keys show keys/stage_1.keys --json"),
    "doctor": (
        "zpptool doctor",
        "zpptool doctor zpp.yaml --host 10.0.0.2",
        "zpptool doctor MODEL --num-stages 4 --json",
    ),
    "run-stage": (
        "zpptool run-stage stages/stage_0 --port 8000",
        "zpptool run-stage --plan zpp.yaml --stage-idx 1",
        "zpptool run-stage MODEL --stage-idx 1 --total-stages 3 -- --max-model-len 4096",
        "zpptool run-stage stages/stage_1 --standby 1",
    ),
    "serve": (
        "zpptool serve MODEL --num-stages 4",
        "zpptool serve MODEL --num-stages 4 --standby 1",
        "zpptool serve MODEL --num-stages 4 --gpu-ids 0,1,2,3 --host 0.0.0.0 --api-key-file keys",
        "zpptool serve --pipeline-dir stages --replicas 2 -- --max-model-len 4096",
        "zpptool serve --upstream http://10.0.0.1:8000 --upstream http://10.0.0.2:8000 --port 8080",
    ),
    "run-batch": (
        "zpptool run-batch MODEL --num-stages 4 -i requests.jsonl -o results.jsonl",
        "zpptool run-batch --url http://10.0.0.1:8000 -i requests.jsonl.gz -o results.jsonl --ordered",
        "zpptool run-batch --pipeline-dir stages --invariant -i 'requests-*.jsonl' -o results.jsonl",
    ),
    "status": (
        "zpptool status",
        "zpptool status --url http://10.0.0.1:8000 --json",
        "zpptool status --run-dir /run/user/1000/zpp-abc",
    ),
    "top": ("zpptool top", "zpptool top --url http://10.0.0.1:8000 --every 2"),
    "rollout": (
        "zpptool rollout",
        "zpptool rollout --url http://10.0.0.1:8000 --json",
        "zpptool rollout --run-dir /run/user/1000/zpp-abc",
    ),
    "rebalance": (
        "zpptool rebalance --ranges 0-7 7-19 19-30",
        "zpptool rebalance --ranges 0-7 7-19 19-30 --plan zpp.yaml --json",
        "zpptool rebalance --ranges 0-8 8-16 --url http://10.0.0.1:8000",
    ),
    "stage replace": (
        "zpptool stage replace 1 --to 10.0.0.3 --plan zpp.yaml",
        "zpptool stage replace 2 --to 10.0.0.3:15560 --plan zpp.yaml --wait 1800 --json",
    ),
    "test-pipeline": (
        "zpptool test-pipeline --pipeline-dir stages --model MODEL --engine vllm",
        "zpptool test-pipeline MODEL --num-stages 3 --test-input Hello --junit junit.xml",
    ),
}


def epilog(name: str) -> str:
    """The text below a command's options; an empty line keeps two lines from being joined."""
    return "\n\n".join(("Examples:", *(f"$ {line}" for line in EXAMPLES[name])))
