# SPDX-License-Identifier: Apache-2.0
"""The unsplit model for a comparison: stock transformers behind the same HTTP API as the pipeline.

Started as `python -m zpptool.engines.transformers.reference SPEC`. Prompts are computed one after the other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Self

from transformers import PreTrainedModel

from zpptool.config.embedded_flags import allowed_media_domains
from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.calls import check_arguments, device_of
from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.sampling import Choice, SamplingParams
from zpptool.engines.transformers.unsplit import generate_choices, load_unsplit
from zpptool.engines.transformers.witness.reference import ReferenceWitness
from zpptool.net.http_server import HttpServer
from zpptool.process.child import end_on_sigterm, run_child

TURN_POLL_S = 0.05
"""How often, in seconds, a sequence that waits for its turn checks whether it was closed."""


class UnsplitModel:
    """A whole model, for one sequence at a time.

    Args:
        model: as transformers loads it.
        witness: records what it computes; None for nothing.
    """

    def __init__(self, model: PreTrainedModel, witness: ReferenceWitness | None = None) -> None:
        self._model = model
        self._turn = threading.Lock()
        self._witness = witness

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: SamplingParams,
        media: Media | None = None,
    ) -> UnsplitSequence:
        """A sequence, which is computed as a whole when its first token is requested."""
        drawn = None if sampling.is_plain else sampling
        compute: Callable[[], list[Choice]] = partial(
            generate_choices, self._model, prompt_ids, max_new_tokens, sorted(stop_ids), drawn, media
        )
        if self._witness is not None:
            compute = partial(self._witness.watch, compute, prompt_ids)
        return UnsplitSequence(compute, self._turn)


class UnsplitSequence:
    """An iterator over the tokens of one sequence.

    Args:
        compute: returns all of its tokens.
        turn: held while a sequence is computed.
    """

    def __init__(self, compute: Callable[[], list[Choice]], turn: threading.Lock) -> None:
        self._compute = compute
        self._turn = turn
        self._computed: Iterator[Choice] | None = None
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Choice:
        """The next token; the first one waits until the sequences before have been computed.

        Raises:
            StopIteration: all tokens were returned, or the sequence was closed.
        """
        while self._computed is None and not self._closed:
            if self._turn.acquire(timeout=TURN_POLL_S):
                try:
                    self._computed = iter(self._compute())
                finally:
                    self._turn.release()
        if self._computed is None or self._closed:
            raise StopIteration
        return next(self._computed)

    def close(self) -> None:
        """End the sequence; it gives up its turn unless that has begun. Any thread may call it."""
        self._closed = True


def main() -> None:
    """Load the model and serve it until a signal ends this process."""
    spec = spec_from_argv(sys.argv)
    check_arguments(spec)
    end_on_sigterm()
    with HttpServer(spec.api_host, spec.api_port) as server:
        whole = load_unsplit(spec.directory, dtype=spec.dtype, device=device_of(spec))
        model = UnsplitModel(whole, ReferenceWitness(spec, whole) if spec.witness.is_on else None)
        domains = allowed_media_domains(spec.engine_args)
        served = served_model(spec.directory, model.generate, lambda: True, media_domains=domains)
        server.start(Front(served).app())
        server.wait()


if __name__ == "__main__":
    run_child("reference", main)
