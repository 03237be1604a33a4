# SPDX-License-Identifier: Apache-2.0
"""Taking one's place in the ring: a spec becomes the two links of a stage or of the head."""

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
from zpptool.log import say
from zpptool.process.respawn import leave_spec
from zpptool.ring.head.epochs import FIRST_EPOCH
from zpptool.ring.head.node import HeadNode
from zpptool.ring.messages import StageFacts
from zpptool.ring.stage.node import StageNode
from zpptool.ring.timeline import Timeline
from zpptool.ring.traced_nodes import TracedHeadNode, TracedStageNode
from zpptool.wire.link import LinkReceiver, LinkSender, Party
from zpptool.wire.message.framing import HEAD
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import link_keys, read_key_file


def open_stage_node(spec: StageSpec) -> StageNode:
    """Open the links of a stage's worker.

    Raises:
        ZppError: (ADDRESS) an endpoint cannot be used.
    """
    downstream = HEAD if spec.is_last else spec.stage + 1
    upstream = HEAD if spec.is_first else spec.stage - 1
    party = Party(spec.stage, spec.num_stages, spec.plan_digest)
    note = partial(say, f"stage {spec.stage}")
    survives = spec.recovery_deadline_s > 0
    before = None if spec.is_first else link_safety(spec, spec.stage, upstream)
    push, pull = _open_links(
        partial(
            LinkSender,
            spec.bind,
            stage=spec.stage,
            peer=downstream,
            party=party,
            note=note,
            codec=spec.wire_codec,
            safety=link_safety(spec, spec.stage, downstream),
            follows=survives,
        ),
        partial(
            LinkReceiver,
            spec.local if spec.is_first else spec.connect,
            stage=spec.stage,
            peer=upstream,
            party=party,
            note=note,
            safety=before,
            follows=survives,
        ),
    )
    kind = TracedStageNode if spec.trace else StageNode
    node = kind(
        spec.stage,
        pull,
        push,
        is_last=spec.is_last,
        start_timeout_s=spec.start_timeout_s,
        step_timeout_s=spec.step_timeout_s,
        note=note,
        layers=(spec.layers.start, spec.layers.end),
        recovery_s=spec.recovery_deadline_s,
        beat_timeout_s=spec.beat_timeout_s,
    )
    node.on_moved(partial(_look_there_again, spec, note))
    if isinstance(node, TracedStageNode):
        node.timeline = Timeline(Path(spec.trace), spec.stage, f"stage {spec.stage}, layers {spec.layers}")
    return node


def open_head_node(spec: StageSpec) -> HeadNode:
    """Open the links of the head, which stands beside stage 0 and is told stage 0's spec. It begins a new run.

    Raises:
        ZppError: (ADDRESS) an endpoint cannot be used.
    """
    party = Party(HEAD, spec.num_stages, spec.plan_digest, run_id=secrets.token_hex(8), epoch=FIRST_EPOCH)
    note = partial(say, "head")
    survives = spec.recovery_deadline_s > 0
    last = spec.num_stages - 1
    homeward = link_safety(spec, HEAD, last)
    push, pull = _open_links(
        partial(LinkSender, spec.local, stage=HEAD, peer=0, party=party, note=note, follows=survives),
        partial(
            LinkReceiver, spec.connect, stage=HEAD, peer=last, party=party, note=note, safety=homeward, follows=survives
        ),
    )
    kind = TracedHeadNode if spec.trace else HeadNode
    node = kind(
        spec.num_stages,
        spec.num_layers,
        push,
        pull,
        start_timeout_s=spec.start_timeout_s,
        step_timeout_s=spec.step_timeout_s,
        note=note,
        beat_timeout_s=spec.beat_timeout_s,
        recovery_s=spec.recovery_deadline_s,
    )
    node.on_moved(partial(_look_there_again, spec, note))
    if isinstance(node, TracedHeadNode):
        node.timeline = Timeline(Path(spec.trace), HEAD, "head")
    return node


def _look_there_again(spec: StageSpec, note: Callable[[str], None], address: str) -> None:
    """Have the next life of this process receive from that address too."""
    try:
        leave_spec(spec, connect=address)
    except (OSError, ZppError) as cause:
        note(f"a next life of this process would look for it where it was: {cause}")


def link_safety(spec: StageSpec, place: int, peer: int) -> LinkSecurity:
    """What a place demands of one neighbour: the keys of the spec's key file, if it has one.

    Raises:
        ZppError: (INVALID) the key file cannot be used, or has no keys for these two.
    """
    keys = link_keys(read_key_file(Path(spec.keys)), place, peer) if spec.keys else None
    return LinkSecurity(keys, spec.insecure)


def _open_links(
    open_push: Callable[[], LinkSender], open_pull: Callable[[], LinkReceiver]
) -> tuple[LinkSender, LinkReceiver]:
    """Both links of a place, or none."""
    push = open_push()
    try:
        return push, open_pull()
    except ZppError:
        push.close(linger_s=0)
        raise


def stage_facts(spec: StageSpec, agreed: Mapping[str, str]) -> StageFacts:
    """What a stage says about itself in the roll call."""
    return StageFacts(
        stage=spec.stage,
        host=socket.gethostname(),
        pid=os.getpid(),
        num_stages=spec.num_stages,
        layers=(spec.layers.start, spec.layers.end),
        agreed=dict(agreed),
        movable=not is_stage_directory(spec.directory),
    )


