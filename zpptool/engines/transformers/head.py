# SPDX-License-Identifier: Apache-2.0
"""The head process of the embedded engine: the HTTP API, and the steps of every sequence.

Started beside stage 0 as `python -m zpptool.engines.transformers.head SPEC`. Each sequence has at most one step in the
ring; several sequences keep all stages busy. When the pipeline breaks, the process ends with the error that names the
cause.

A sequence that was lost with a stage is computed again exactly as before: its prompt, then its tokens one by one, each
of which is drawn again. So every bit of its state is the same, and the next tokens are those of an undisturbed run.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from functools import partial

from zpptool.admin.attach import admin_servers
from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.engines.base import LOAD_MODEL, prepare_partition
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.calls import (
    FREE,
    STEP,
    Step,
    agreed_facts,
    check_arguments,
    decode_number,
    encode_number,
    encode_step,
)
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.log import place_logger
from zpptool.net.http_server import HttpServer
from zpptool.places import HEAD
from zpptool.process import progress as phases
from zpptool.process.child import end_on_sigterm, run_child
from zpptool.ring.head.node import HeadNode
from zpptool.ring.membership import open_head_node
from zpptool.wire.link_errors import StaleEpoch

_log = place_logger(__name__, HEAD)


class RingModel:
    """The model that the stages of a ring form together.

    Args:
        node: the head's place in the ring; the stages have loaded.
    """

    def __init__(self, node: HeadNode) -> None:
        self._node = node
        self._numbers = itertools.count()

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int], sampling: SamplingParams
    ) -> Generator[int, None, None]:
        """The tokens of one sequence. Each takes one pass through the stages, which forget the sequence at the end.

        Raises:
            ZppError: (STAGE) a stage failed at it, or the pipeline is broken.
        """
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop_ids):
            try:
                for token in self._continue(prompt_ids, tokens, max_new_tokens, sampling):
                    tokens.append(token)
                    yield token
                    if token in stop_ids:
                        break
            except StaleEpoch:
                self._node.count_recomputed(len(prompt_ids) + len(tokens))

    def _continue(
        self, prompt_ids: Sequence[int], tokens: Sequence[int], max_new_tokens: int, sampling: SamplingParams
    ) -> Generator[int, None, None]:
        """The tokens of a sequence that follow `tokens`, computed in the current epoch.

        Raises:
            StaleEpoch: that epoch has ended.
        """
        epoch = self._node.wait_until_whole()
        sequence, known = next(self._numbers), tuple(tokens)
        step = Step(sequence, list(prompt_ids), sampling)
        try:
            for position in range(max_new_tokens):
                answer = self._node.call(STEP, encode_step(step), from_all=False, epoch=epoch).result()
                token = decode_number(answer[0])
                if position < len(known):
                    token = known[position]
                else:
                    yield token
                step = Step(sequence, [token], None)
        finally:
            self._node.call(FREE, encode_number(sequence), from_all=False, epoch=epoch)

    def is_healthy(self) -> bool:
        """Whether the pipeline is whole."""
        return self._node.fault is None


def main() -> None:
    """Gather the stages, have them load, and serve until a signal ends this process."""
    spec = spec_from_argv(sys.argv)
    check_arguments(spec)
    end_on_sigterm()
    with HttpServer(spec.api_host, spec.api_port) as server:
        node = open_head_node(spec)
        node.on_fault(lambda _fault: server.interrupt())
        with closing(node), admin_servers(node, spec):
            try:
                serve(spec, node, server)
            finally:
                node.stop("the head has ended")


def serve(spec: StageSpec, node: HeadNode, server: HttpServer) -> None:
    """Serve the ring's model until the server is interrupted.

    Raises:
        ZppError: (INVALID) the stages do not fit together; (STAGE) the pipeline broke.
    """
    node.on_partition(partial(prepare_partition, spec, node.facts))
    node.gather(agreed_facts(spec))
    model = RingModel(node)
    served = served_model(spec.directory, model.generate, model.is_healthy, spec.served_name or None)
    node.set_up(LOAD_MODEL, b"", timeout_s=spec.start_timeout_s).result()
    phases.report_phase(phases.LOADED)
    _log.info("all stages have loaded their layers; the API is at http://%s:%d", spec.api_host, spec.api_port)
    server.start(Front(served).app())
    server.wait()
    if node.fault is not None:
        raise node.fault


if __name__ == "__main__":
    run_child("head", main)
