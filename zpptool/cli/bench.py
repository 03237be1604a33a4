# SPDX-License-Identifier: Apache-2.0
"""`zpptool bench`: a running pipeline under load."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from zpptool.cli.options import (
    DEFAULT_URL,
    ApiKeyOption,
    DefaultUrlOption,
    JsonOption,
    ServedModelOption,
    SilenceOption,
)
from zpptool.console import Console


def bench(
    url: DefaultUrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    model: ServedModelOption = "",
    num_prompts: Annotated[int, typer.Option("--num-prompts", metavar="N", min=1, help="How many requests.")] = 64,
    input_len: Annotated[int, typer.Option("--input-len", metavar="N", min=1, help="Tokens of each prompt.")] = 128,
    output_len: Annotated[int, typer.Option("--output-len", metavar="N", min=1, help="Tokens of each answer.")] = 64,
    concurrency: Annotated[
        int, typer.Option("--max-concurrency", metavar="N", min=1, max=1024, help="The most requests at a time.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the random prompts.")] = 0,
    timeout: SilenceOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Measure a running pipeline under load: throughput, time to the first token, time between tokens.

    Prompts are random token ids. The keys of --json are those of `vllm bench serve`.
    """
    from zpptool.net.answer_stream import AnswerClient
    from zpptool.net.load_trial import Load, run_load

    with closing(AnswerClient(url, api_key, timeout)) as client:
        load = Load(model or client.model(), num_prompts, input_len, output_len, concurrency, seed)
        result = run_load(client, load)
    Console(as_json=as_json).result(result, lambda out: _show_bench(out, result))


def _show_bench(out: Console, result: dict[str, Any]) -> None:
    out.line(
        f"{result['model_id']}: {result['completed']} of {result['num_prompts']} requests in"
        f" {result['duration']:.1f} s, {result['failed']} failed"
    )
    out.line(f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.1f} tokens/s generated")
    names = {"ttft": "time to first token", "tpot": "time per token", "itl": "between tokens", "e2el": "whole answer"}
    columns = ("", "mean ms", "median ms", "p99 ms")
    rows = [
        (title, *(f"{result[f'{kind}_{name}_ms']:.1f}" for kind in ("mean", "median", "p99")))
        for name, title in names.items()
        if f"mean_{name}_ms" in result
    ]
    out.table("", columns, rows, right=columns[1:])
