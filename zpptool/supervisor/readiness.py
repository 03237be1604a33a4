# SPDX-License-Identifier: Apache-2.0
"""Whether a pipeline is whole: a real token has gone round the ring, asked for over the API as a client would.

The asking is done by a thread of its own, for an answer may take as long as a step may take.
"""

from __future__ import annotations

import threading

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.net.openai_client import ApiClient

ASK_EVERY_S = 0.1
FIRST_TOKEN = 0
"""Every vocabulary has it, so no tokenizer is asked."""


class Readiness:
    """Asks a pipeline for a token until it gets one.

    Args:
        head: stage 0's spec, which says where the API listens.
    """

    def __init__(self, head: StageSpec) -> None:
        self._client = ApiClient(f"http://{head.api_host}:{head.api_port}", head.start_timeout_s)
        self._whole = threading.Event()
        self._over = threading.Event()
        threading.Thread(target=self._ask, name="readiness", daemon=True).start()

    def is_whole(self) -> bool:
        """Whether a token has come."""
        return self._whole.is_set()

    def give_up(self) -> None:
        """Ask no more."""
        self._over.set()

    def _ask(self) -> None:
        with self._client as client:
            while not self._over.is_set():
                if client.is_ready() and _has_answered(client):
                    self._whole.set()
                    return
                self._over.wait(ASK_EVERY_S)


def _has_answered(client: ApiClient) -> bool:
    try:
        client.complete([FIRST_TOKEN], 1, {})
    except ZppError:
        return False
    return True
