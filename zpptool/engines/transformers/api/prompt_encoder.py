# SPDX-License-Identifier: Apache-2.0
"""Converts prompts and chats to token ids and back on a thread of its own, so the event loop serves other requests.

Prompts are converted one at a time, in the order in which they were requested; a request that is cancelled leaves the
queue. No other thread uses the tokenizer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.chat_prompt import ChatPrompt
from zpptool.engines.transformers.api.context_length import ContextLength
from zpptool.engines.transformers.api.image_processor import ImageProcessor
from zpptool.engines.transformers.api.images import ImageSource, decode_images
from zpptool.engines.transformers.api.messages import check_rendered, for_template
from zpptool.engines.transformers.media import Media

_Result = TypeVar("_Result")
_PROBE = "zpptool-probe"
"""A text that no template has."""


@dataclass(frozen=True)
class EncodedChat:
    """The prompt that a chat becomes.

    Attributes:
        token_ids: of all of it, those that stand for images among them.
        media: what the processor made of its images; None without images.
    """

    token_ids: list[int]
    media: Media | None = None


class PromptEncoder:
    """The tokenizer of one model, and its processor of images.

    Args:
        tokenizer: transformers' own.
        context: the model's limits.
        processor: of images; the reason why there is none where images are not taken.
        source: where images come from.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: ContextLength,
        processor: ImageProcessor | str = "the model takes text only",
        source: ImageSource | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._processor = processor
        self._source = source or ImageSource()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    async def text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a prompt.

        Raises:
            BadRequest: it is longer than the context length can be.
        """
        self._context.check_text(len(text), "prompt")
        return await self._on_thread(lambda: self._encode(text, add_special_tokens))

    async def chat(self, prompt: ChatPrompt) -> EncodedChat:
        """The token ids of a chat, in the form that the model's chat template gives it, and its images.

        Raises:
            BadRequest: it is too long, there is no template, the template refuses the messages or does not use a part
                of them, or an image is not taken.
        """
        self._context.check_text(sum(len(message.text) for message in prompt.messages), "messages")
        urls = [url for message in prompt.messages for url in message.image_urls]
        if urls and isinstance(self._processor, str):
            raise BadRequest(f"messages: they have images, and {self._processor}", "messages")
        contents = await self._source.contents(urls)
        return await self._on_thread(lambda: self._chat(prompt, contents))

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

    def _chat(self, prompt: ChatPrompt, contents: Sequence[bytes]) -> EncodedChat:
        """Convert a chat; `contents` are the bytes of its images."""
        template = getattr(self._processor, "chat_template", None) or self._tokenizer.chat_template
        if template is None:
            raise BadRequest("messages: the model has no chat template", "messages")
        processor = None if isinstance(self._processor, str) else self._processor
        in_parts = processor is not None and self._takes_parts(template)
        if contents and processor is not None and not in_parts and processor.image_word is None:
            raise BadRequest("messages: the model's chat template has no place for images", "messages")
        word = (processor.image_word if processor is not None else None) or ""
        conversation = for_template(prompt.messages, str(template), in_parts=in_parts, image_word=word)
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=template if isinstance(template, str) else None,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                tokenize=False,
                **prompt.template_variables(),
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as cause:
            raise BadRequest(f"messages: the chat template refuses them: {cause}", "messages") from cause
        check_rendered(prompt.messages, rendered)
        self._context.check_text(len(rendered), "messages")
        if contents and processor is not None:
            images = decode_images(contents)
            return EncodedChat(*processor.encode(rendered, images, add_special_tokens=prompt.add_special_tokens))
        return EncodedChat(self._encode(rendered, add_special_tokens=prompt.add_special_tokens))

    def _takes_parts(self, template: Any) -> bool:
        """Whether a template takes content as a list of texts and images: found by rendering one."""
        content = [{"type": "text", "text": _PROBE}]
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template if isinstance(template, str) else None,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            return False
        return _PROBE in rendered and repr(content[0]) not in rendered

    def _spellings(self, word: str) -> list[list[int]]:
        plain = self._encode(word.lstrip(), add_special_tokens=False)
        spaced = self._encode(" " + word.lstrip(), add_special_tokens=False)
        differs = bool(spaced) and len(spaced) == len(plain) and spaced[0] != plain[0]
        return [ids for ids in (plain, spaced if differs else []) if ids]
