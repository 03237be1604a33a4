# SPDX-License-Identifier: Apache-2.0
"""The head process of the embedded engine: the HTTP API, and the steps of every sequence.

Started beside stage 0 as `python -m zpptool.engines.transformers.head SPEC`. Each sequence has at most one step in the
ring; several sequences keep all stages busy. When the pipeline breaks, the process ends with the error that names the
cause.
"""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial

from zpptool.admin.attach import admin_servers
from zpptool.config.embedded_flags import allowed_media_domains
from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.engines.base import LOAD_MODEL, prepare_partition
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.calls import agreed_facts, check_arguments
from zpptool.engines.transformers.ring_model import RingModel
from zpptool.log import place_logger
from zpptool.net.admission import Admission
from zpptool.net.http_server import HttpServer
from zpptool.net.request_middleware import RequestContexts
from zpptool.net.tracing import tracer_at
from zpptool.places import HEAD, place_name
from zpptool.process import progress as phases
from zpptool.process.child import end_on_sigterm, run_child
from zpptool.process.signals import end_this_process, on_end_of_requests
from zpptool.ring.head.node import HeadNode
from zpptool.ring.membership import open_head_node

_log = place_logger(__name__, HEAD)


def main() -> None:
    """Gather the stages, have them load, and serve until a signal ends this process."""
    spec = spec_from_argv(sys.argv)
    check_arguments(spec)
    end_on_sigterm()
    on_end_of_requests()
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
    with closing(RingModel(node)) as model:
        served = served_model(
            spec.directory,
            model.generate,
            model.is_healthy,
            spec.served_name or None,
            allowed_media_domains(spec.engine_args),
        )
        node.set_up(LOAD_MODEL, b"", timeout_s=spec.start_timeout_s).result()
        phases.report_phase(phases.LOADED)
        _log.info("all stages have loaded their layers; the API is at http://%s:%d", spec.api_host, spec.api_port)
        app = RequestContexts(Front(served).app(), tracer_at(HEAD), place_name(HEAD))
        admission = Admission(app)
        server.start(lambda: admission)
        on_end_of_requests(
            drain=lambda: server.loop.call_soon_threadsafe(admission.close, end_this_process),
            cut=lambda: server.loop.call_soon_threadsafe(admission.cut, end_this_process),
        )
        server.wait()
    if node.fault is not None:
        raise node.fault


if __name__ == "__main__":
    run_child("head", main)
