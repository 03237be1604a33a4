# SPDX-License-Identifier: Apache-2.0
"""Where vLLM fetches the images, videos and sounds that a request names by a URL."""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.multimodal.media.connector import MediaConnector

_SHOWN_CHARACTERS = 80


def failed_loads_are_client_errors() -> None:
    """Have content that cannot be loaded be a 400 with its reason. vLLM 0.32 answers 500 for a local file that it may
    not read, and for a server that does not answer."""
    stock = MediaConnector.load_from_url_async
    if stock.__module__ == __name__:
        return

    async def load_from_url_async(connector: MediaConnector, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await stock(connector, url, *args, **kwargs)
        except (VLLMClientError, ValueError, NotImplementedError):
            raise
        except Exception as cause:
            raise VLLMValidationError(f"{url[:_SHOWN_CHARACTERS]} cannot be loaded: {cause!r}") from cause

    MediaConnector.load_from_url_async = load_from_url_async
