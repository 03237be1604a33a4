# SPDX-License-Identifier: Apache-2.0
"""`zpptool chat` and `zpptool complete`: ask a running pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

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
from zpptool.errors import usage_error

if TYPE_CHECKING:
    from zpptool.net.answer_stream import AnswerClient

STDIN = "-"
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens an answer.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="T", min=0, help="0 for the likeliest token; else the model's.")
]


def chat(
    message: Annotated[
        str | None, typer.Argument(metavar="[MESSAGE]", help="One message; without it, one for each line of stdin.")
    ] = None,
    url: DefaultUrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    model: ServedModelOption = "",
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system message.")] = "",
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    timeout: SilenceOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Chat with a running pipeline. Answers appear as they are computed.

    Without MESSAGE each line of stdin is a message of one conversation, until its end (Ctrl-D on a terminal).
    """
    from zpptool.net.answer_stream import AnswerClient

    if as_json and message is None:
        raise usage_error("--json prints one answer, and no MESSAGE is given", "zpptool chat --json 'Hello'")
    turns = [{"role": "system", "content": system}] if system else []
    with closing(AnswerClient(url, api_key, timeout)) as client:
        name = model or client.model()
        for text in [message] if message is not None else _typed_lines():
            turns.append({"role": "user", "content": text})
            body = {"model": name, "messages": turns, **_sampling(max_tokens, temperature)}
            answer = _answer(client, "/v1/chat/completions", body, as_json)
            turns.append({"role": "assistant", "content": answer})


def complete(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - for stdin.")],
    url: DefaultUrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    model: ServedModelOption = "",
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    timeout: SilenceOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Have a running pipeline continue a text. It appears as it is computed."""
    from zpptool.net.answer_stream import AnswerClient

    text = sys.stdin.read() if prompt == STDIN else prompt
    with closing(AnswerClient(url, api_key, timeout)) as client:
        body = {"model": model or client.model(), "prompt": text, **_sampling(max_tokens, temperature)}
        _answer(client, "/v1/completions", body, as_json)


def _answer(client: AnswerClient, path: str, body: dict[str, Any], as_json: bool) -> str:
    """Print an answer as it arrives, or with --json at its end; return its text."""
    out = Console(as_json=as_json)
    text, reason = "", ""
    for piece in client.stream(path, body):
        text += piece.text
        reason = piece.finish_reason or reason
        out.piece(piece.text)
    out.result({"model": body["model"], "text": text, "finish_reason": reason}, lambda out: out.line())
    return text


def _sampling(max_tokens: int | None, temperature: float | None) -> dict[str, Any]:
    given = {"max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}


def _typed_lines() -> Iterator[str]:
    """The lines of stdin that are not empty; on a terminal with a prompt before each."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
