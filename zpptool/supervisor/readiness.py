# SPDX-License-Identifier: Apache-2.0
"""Whether a pipeline is whole: a token has passed through the ring, requested over the API as a client does.

A thread sends the request, because an answer may take as long as a step may take.
"""

from __future__ import annotations

import threading

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.net.addresses import url_host
from zpptool.net.openai_client import ApiClient

INTERVAL_S = 0.1
FIRST_TOKEN = 0
"""The prompt. Every vocabulary has this token, so no tokenizer is needed."""


class ReadinessProbe:
    """Requests a token from a pipeline until it gets one.

    Args:
        head: stage 0's spec, which has the address of the API.
    """

    def __init__(self, head: StageSpec) -> None:
        self._client = ApiClient(f"http://{url_host(head.api_host)}:{head.api_port}", head.start_timeout_s)
        self._whole = threading.Event()
        self._cancelled = threading.Event()
        threading.Thread(target=self._run, name="readiness", daemon=True).start()

    def is_whole(self) -> bool:
        """Whether a token has been received."""
        return self._whole.is_set()

    def cancel(self) -> None:
        """Send no more requests."""
        self._cancelled.set()

    def _run(self) -> None:
        with self._client as client:
            while not self._cancelled.is_set():
                if client.is_ready() and _completes(client):
                    self._whole.set()
                    return
                self._cancelled.wait(INTERVAL_S)


def _completes(client: ApiClient) -> bool:
    try:
        client.complete([FIRST_TOKEN], 1, {})
    except ZppError:
        return False
    return True
