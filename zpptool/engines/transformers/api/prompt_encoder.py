# SPDX-License-Identifier: Apache-2.0
"""Converts prompts and chats to token ids and back on a thread of its own, so the event loop serves other requests.

Prompts are converted one at a time, in the order in which they were requested; a request that is cancelled leaves the
queue. No other thread uses the tokenizer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.chat_prompt import ChatPrompt
from zpptool.engines.transformers.api.context_length import ContextLength
from zpptool.engines.transformers.api.messages import check_rendered, for_template

_Result = TypeVar("_Result")


class PromptEncoder:
    """The tokenizer of one model.

    Args:
        tokenizer: transformers' own.
        context: the model's limits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: ContextLength) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    async def text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a prompt.

        Raises:
            BadRequest: it is longer than the context length can be.
        """
        self._context.check_text(len(text), "prompt")
        return await self._on_thread(lambda: self._encode(text, add_special_tokens))

    async def chat(self, prompt: ChatPrompt) -> list[int]:
        """The token ids of a chat, in the form that the model's chat template gives it.

        Raises:
            BadRequest: it is too long, there is no template, or the template refuses the messages or does not use a
                part of them.
        """
        self._context.check_text(sum(len(message.text) for message in prompt.messages), "messages")
        return await self._on_thread(lambda: self._chat(prompt))

    async def banned_sequences(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids of each word, and of the word after a space where that is another token.

        The rule is vLLM's (`SamplingParams.update_from_tokenizer`): a second spelling counts if it has as many tokens
        and begins with another one.
        """
        return await self._on_thread(lambda: [ids for word in words for ids in self._spellings(word)])

    async def token_strs(self, token_ids: list[int]) -> list[str]:
        """The tokens in the vocabulary's own spelling."""
        return await self._on_thread(lambda: list(self._tokenizer.convert_ids_to_tokens(token_ids)))

    async def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, with special tokens."""
        return await self._on_thread(lambda: str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)))

    async def _on_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return token_ids

    def _chat(self, prompt: ChatPrompt) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise BadRequest("messages: the model has no chat template", "messages")
        conversation = for_template(prompt.messages, str(self._tokenizer.chat_template))
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                tokenize=False,
                **prompt.template_variables(),
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as cause:
            raise BadRequest(f"messages: the chat template refuses them: {cause}", "messages") from cause
        check_rendered(prompt.messages, rendered)
        self._context.check_text(len(rendered), "messages")
        return self._encode(rendered, add_special_tokens=prompt.add_special_tokens)

    def _spellings(self, word: str) -> list[list[int]]:
        plain = self._encode(word.lstrip(), add_special_tokens=False)
        spaced = self._encode(" " + word.lstrip(), add_special_tokens=False)
        differs = bool(spaced) and len(spaced) == len(plain) and spaced[0] != plain[0]
        return [ids for ids in (plain, spaced if differs else []) if ids]
