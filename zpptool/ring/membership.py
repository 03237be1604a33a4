# SPDX-License-Identifier: Apache-2.0
"""Opening a place in the ring: from a spec to the node of a stage or of the head, with its two links."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from zpptool.checkpoint.manifest import is_stage_directory
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.log import PlaceLogger, place_logger
from zpptool.places import HEAD
from zpptool.process.respawn import leave_spec
from zpptool.ring.head.epochs import FIRST_EPOCH
from zpptool.ring.head.node import HeadNode
from zpptool.ring.messages import StageFacts
from zpptool.ring.stage.node import StageNode
from zpptool.ring.timeline import Timeline
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, Party
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import link_keys, read_key_file


def open_stage_node(spec: StageSpec) -> StageNode:
    """The node of a stage, with its links open.

    Raises:
        ZppError: (ADDRESS) an endpoint cannot be used.
    """
    downstream = HEAD if spec.is_last else spec.stage + 1
    upstream = HEAD if spec.is_first else spec.stage - 1
    party = Party(spec.stage, spec.num_stages, spec.plan_digest)
    log = place_logger(__name__, spec.stage)
    survives = spec.recovery_deadline_s > 0
    before = LinkSecurity() if spec.is_first else link_security(spec, spec.stage, upstream)
    sender, receiver = _open_links(
        partial(
            LinkSender,
            spec.bind,
            stage=spec.stage,
            peer=downstream,
            options=LinkOptions(
                party=party,
                codec=spec.wire_codec,
                security=link_security(spec, spec.stage, downstream),
                follows=survives,
            ),
        ),
        partial(
            LinkReceiver,
            spec.local if spec.is_first else spec.connect,
            stage=spec.stage,
            peer=upstream,
            options=LinkOptions(party=party, security=before, follows=survives),
        ),
    )
    node = StageNode(
        spec.stage,
        receiver,
        sender,
        _timeouts(spec),
        is_last=spec.is_last,
        layers=(spec.layers.start, spec.layers.end),
        timeline=_timeline(spec, spec.stage, f"stage {spec.stage}, layers {spec.layers}"),
    )
    node.on_moved(partial(_remember_address, spec, log))
    return node


def open_head_node(spec: StageSpec) -> HeadNode:
    """The head's node, with its links open. It begins a new run.

    Args:
        spec: of stage 0, on whose machine the head runs.

    Raises:
        ZppError: (ADDRESS) an endpoint cannot be used.
    """
    party = Party(HEAD, spec.num_stages, spec.plan_digest, run_id=secrets.token_hex(8), epoch=FIRST_EPOCH)
    log = place_logger(__name__, HEAD)
    survives = spec.recovery_deadline_s > 0
    last = spec.num_stages - 1
    homeward = link_security(spec, HEAD, last)
    sender, receiver = _open_links(
        partial(LinkSender, spec.local, stage=HEAD, peer=0, options=LinkOptions(party=party, follows=survives)),
        partial(
            LinkReceiver,
            spec.connect,
            stage=HEAD,
            peer=last,
            options=LinkOptions(party=party, security=homeward, follows=survives),
        ),
    )
    node = HeadNode(
        spec.num_stages, spec.num_layers, sender, receiver, _timeouts(spec), timeline=_timeline(spec, HEAD, "head")
    )
    node.on_moved(partial(_remember_address, spec, log))
    return node


def _timeouts(spec: StageSpec) -> RingTimeouts:
    return RingTimeouts(
        start_s=spec.start_timeout_s,
        step_s=spec.step_timeout_s,
        beat_s=spec.beat_timeout_s,
        recovery_s=spec.recovery_deadline_s,
    )


def _timeline(spec: StageSpec, place: int, title: str) -> Timeline | None:
    return Timeline(Path(spec.trace), place, title) if spec.trace else None


def _remember_address(spec: StageSpec, log: PlaceLogger, address: str) -> None:
    """Have this process receive from that address after a restart too."""
    try:
        leave_spec(spec, connect=address)
    except (OSError, ZppError) as cause:
        log.warning(f"after a restart this process would connect to the old address: {cause}")


def link_security(spec: StageSpec, place: int, peer: int) -> LinkSecurity:
    """What a place requires of the link to one neighbour: the keys of the spec's key file, if it has one.

    Raises:
        ZppError: (INVALID) the key file cannot be used, or has no keys for these two.
    """
    keys = link_keys(read_key_file(Path(spec.keys)), place, peer) if spec.keys else None
    return LinkSecurity(keys, spec.insecure)


def _open_links(
    open_sender: Callable[[], LinkSender], open_receiver: Callable[[], LinkReceiver]
) -> tuple[LinkSender, LinkReceiver]:
    """Open both links of a place, or neither."""
    sender = open_sender()
    try:
        return sender, open_receiver()
    except ZppError:
        sender.close(linger_s=0)
        raise


def stage_facts(spec: StageSpec, agreed: Mapping[str, str]) -> StageFacts:
    """What a stage reports about itself in the roll call.

    Args:
        spec: of the stage.
        agreed: what has to be the same in the whole pipeline, by name.
    """
    return StageFacts(
        stage=spec.stage,
        host=socket.gethostname(),
        pid=os.getpid(),
        num_stages=spec.num_stages,
        layers=(spec.layers.start, spec.layers.end),
        agreed=dict(agreed),
        movable=not is_stage_directory(spec.directory),
    )
