# SPDX-License-Identifier: Apache-2.0
"""The unsplit model for a comparison: stock transformers behind the same HTTP API as the pipeline.

Started as `python -m zpptool.engines.transformers.reference SPEC`. Prompts are computed one after the other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Generator, Sequence

from transformers import PreTrainedModel

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.calls import check_arguments, device_of
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.engines.transformers.unsplit import generate, load_unsplit
from zpptool.net.http_server import HttpServer
from zpptool.process.child import end_on_sigterm, run_child


class UnsplitModel:
    """A whole model, for one sequence at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._lock = threading.Lock()

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int], sampling: SamplingParams
    ) -> Generator[int, None, None]:
        """The tokens of one sequence. All are computed before the first is yielded."""
        sampled = sampling if sampling.temperature else None
        with self._lock:
            tokens = generate(self._model, prompt_ids, max_new_tokens, sorted(stop_ids), sampled)
        yield from tokens


def main() -> None:
    """Load the model and serve it until a signal ends this process."""
    spec = spec_from_argv(sys.argv)
    check_arguments(spec)
    end_on_sigterm()
    with HttpServer(spec.api_host, spec.api_port) as server:
        model = UnsplitModel(load_unsplit(spec.directory, dtype=spec.dtype, device=device_of(spec)))
        server.start(Front(served_model(spec.directory, model.generate, lambda: True)).app())
        server.wait()


if __name__ == "__main__":
    run_child("reference", main)
