# SPDX-License-Identifier: Apache-2.0
"""A client for the part of the OpenAI API that a trial needs; the server is stock vLLM's or the embedded engine's.

Prompts are sent as token ids and completions are returned as token ids (`return_token_ids`), so no tokenizer can make
the two sides of a comparison differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import httpx

from zpptool.errors import stage_error


class ApiClient:
    """A client of one server.

    Args:
        base_url: `http://host:port`.
        timeout_s: how long one response may take, in seconds.
    """

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self.base_url = base_url
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False)

    def is_ready(self) -> bool:
        """Whether the server reports that it can serve requests."""
        try:
            return self._http.get("/health", timeout=5.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def tokenize(self, text: str, *, as_chat: bool) -> list[int]:
        """The token ids of a prompt, or of a chat whose only message, the user's, is that prompt.

        Raises:
            ZppError: (STAGE) the server does not answer, or answers with an error.
        """
        chat = {"messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
        answer = self._post("/tokenize", chat if as_chat else {"prompt": text})
        return list(answer["tokens"])

    def complete(self, prompt: Prompt, max_tokens: int, sampling: dict[str, Any]) -> Generation:
        """Complete one prompt.

        Args:
            prompt: token ids, or a chat about images.
            max_tokens: the most tokens to generate.
            sampling: fields of the request; without `temperature` decoding is greedy.

        Raises:
            ZppError: (STAGE) the server does not answer, or answers with an error.
        """
        asked = {"max_tokens": max_tokens, "temperature": 0.0, "return_token_ids": True, **sampling}
        if isinstance(prompt, ImageChat):
            answer = self._post("/v1/chat/completions", {"messages": [prompt.message()], **asked})
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
            return Generation(tuple(choice["token_ids"]), text, tuple(answer["prompt_token_ids"]))
        answer = self._post("/v1/completions", {"prompt": list(prompt), **asked})
        choice = answer["choices"][0]
        return Generation(tuple(choice["token_ids"]), choice["text"], tuple(prompt))

    def complete_all(
        self, prompts: Sequence[Prompt], max_tokens: int | Sequence[int], sampling: dict[str, Any], *, at_once: int
    ) -> list[Generation]:
        """Complete several prompts, and return the completions in the order of the prompts.

        An error or a Ctrl-C does not wait for the other requests: those end with the server.

        Args:
            prompts, max_tokens, sampling: as for `complete`; `max_tokens` may be one number for each prompt.
            at_once: the most requests in progress at a time.

        Raises:
            ZppError: (STAGE) the server does not answer, or answers with an error.
        """
        lengths = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        pool = ThreadPoolExecutor(max(at_once, 1))
        try:
            return list(pool.map(lambda prompt, most: self.complete(prompt, most, sampling), prompts, lengths))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._http.post(path, json=body)
        except httpx.HTTPError as cause:
            raise stage_error(f"the server at {self.base_url} did not answer {path}: {cause}") from cause
        if response.status_code != httpx.codes.OK:
            raise stage_error(
                f"the server at {self.base_url} answered {path} with {response.status_code}", response.text
            )
        answer: dict[str, Any] = response.json()
        return answer


@dataclass(frozen=True)
class Generation:
    """A model's completion of one prompt.

    Attributes:
        token_ids: the new tokens.
        text: the same tokens, decoded.
        prompt_token_ids: the prompt's tokens, those that stand for images included.
    """

    token_ids: tuple[int, ...]
    text: str
    prompt_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageChat:
    """A chat with one message of the user's: images, then a text.

    Attributes:
        text: the text.
        images: as `data:` URLs.
    """

    text: str
    images: tuple[str, ...]

    def message(self) -> dict[str, Any]:
        """The message, as the chat completions API takes it."""
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        return {"role": "user", "content": [*images, {"type": "text", "text": self.text}]}


Prompt: TypeAlias = Sequence[int] | ImageChat
"""Token ids, or a chat about images."""
