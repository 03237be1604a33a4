# SPDX-License-Identifier: Apache-2.0
"""One sequence that the stages of a ring compute.

A sequence that was lost with a stage is computed again exactly as before: its prompt, then its tokens one by one, each
of which is drawn again. So every bit of its state is the same, and the next tokens are those of an undisturbed run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Self

from zpptool.engines.transformers.calls import STEP, Step, decode_choice, encode_step
from zpptool.engines.transformers.media import Media, encode_media
from zpptool.engines.transformers.release_queue import ReleaseQueue, SequenceNumber
from zpptool.engines.transformers.sampling import Choice, SamplingParams
from zpptool.net.request_context import current_request
from zpptool.ring.head.node import HeadNode
from zpptool.wire.link_errors import StaleEpoch


class RingSequence:
    """An iterator over the tokens of one sequence. Each takes one pass through the stages.

    The stages forget the sequence when it has ended: after its last token, after an error, or with `close`. It has no
    destructor: a sequence that is neither used up nor closed stays in the stages.

    Args:
        node: the head's place in the ring.
        releases: takes the sequence's number when it has ended.
        new_number: returns a number that no sequence has had.
        prompt_ids, max_new_tokens, stop_ids, sampling, media: as for
            `zpptool.engines.transformers.api.served.Generate`.
    """

    def __init__(
        self,
        node: HeadNode,
        releases: ReleaseQueue,
        new_number: Callable[[], int],
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: SamplingParams,
        media: Media | None = None,
    ) -> None:
        self._node = node
        self._releases = releases
        self._new_number = new_number
        self._prompt = list(prompt_ids)
        self._max_new_tokens = max_new_tokens
        self._stop_ids = stop_ids
        self._sampling = sampling
        self._request = current_request()
        self._media = media
        self._tokens: list[int] = []
        self._known_as: SequenceNumber | None = None
        self._lock = threading.Lock()  # of the two fields below; not held during a step
        self._ended = max_new_tokens < 1
        self._stepping = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Choice:
        """The next token; one thread at a time.

        Raises:
            StopIteration: the sequence has ended or was closed.
            ZppError: (STAGE) a stage failed at it, or the pipeline is broken.
        """
        with self._lock:
            if self._ended:
                raise StopIteration
            self._stepping = True
        ended = True
        try:
            choice = self._compute()
            self._tokens.append(choice.token)
            ended = len(self._tokens) >= self._max_new_tokens or choice.token in self._stop_ids
            return choice
        finally:
            with self._lock:
                self._stepping = False
                self._ended = ended or self._ended
                self._release_if_over()

    def close(self) -> None:
        """End the sequence before its next step. Never waits, and any thread may call it, also during a step."""
        with self._lock:
            self._ended = True
            self._release_if_over()

    def _compute(self) -> Choice:
        while True:
            try:
                return self._step([self._tokens[-1]]) if self._known_as is not None else self._begin()
            except StaleEpoch:
                self._known_as = None
                recomputed = len(self._prompt) + len(self._tokens)
                self._node.count_recomputed(recomputed)
                self._request.span.event("recovery", recomputed_tokens=recomputed)

    def _begin(self) -> Choice:
        """Compute the prompt and the tokens so far in the current epoch, and return the token after these."""
        self._known_as = SequenceNumber(self._node.wait_until_whole(), self._new_number())
        choice = self._step(self._prompt, self._sampling, self._media)
        for token in self._tokens:
            if self._ended:
                break
            choice = self._step([token])
        return choice

    def _step(self, token_ids: list[int], sampling: SamplingParams | None = None, media: Media | None = None) -> Choice:
        assert self._known_as is not None
        step = encode_step(Step(self._known_as.number, token_ids, sampling, encode_media(media)))
        epoch = self._known_as.epoch
        answer = self._node.call(STEP, step, from_all=False, epoch=epoch, request=self._request).result()
        return decode_choice(answer[0])

    def _release_if_over(self) -> None:
        """Called with the lock."""
        if self._ended and not self._stepping and self._known_as is not None:
            self._releases.put(self._known_as)
            self._known_as = None
