# SPDX-License-Identifier: Apache-2.0
"""A stage's phase in the status: from its ring, before that from its own process, or from its pipeline."""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec
import pytest

from tests.rings import LINK, ring, stage
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.places import HEAD
from zpptool.ring.status import (
    COMPUTING,
    LOADING,
    READY,
    RECOVERING,
    WAITING,
    WARMING_UP,
    RingStatus,
    StageStatus,
    unheard,
)
from zpptool.serve.backends import backend_state
from zpptool.serve.display import rows_of
from zpptool.serve.pipeline_status import describe_pipeline, stage_phase
from zpptool.supervisor.lifecycle import Phase, State
from zpptool.supervisor.pipeline_view import PipelineView, ProcessView

SPECS = tuple(
    StageSpec(Engine.TRANSFORMERS, "/m", ((0, 2), (2, 4)), number, "ipc:///b", "ipc:///c", served_name="tiny")
    for number in range(2)
)


def view(phase: Phase, reported: str, ring_status: RingStatus | None = None, *, running: bool = True) -> PipelineView:
    """A pipeline whose processes, all of them this test's process, report a phase."""
    processes = tuple(
        ProcessView(name, os.getpid(), reported, running if name == "stage 1" else True)
        for name in ("stage 0", "head", "stage 1")
    )
    state = State(phase, generation=2, ever_ready=True, places=(HEAD, 0, 1))
    return PipelineView(state, SPECS, processes, 1, ring_status)


def stage_1_is(phase: str) -> RingStatus:
    return ring(stage(0), stage(1, phase))


UNHEARD = ring(stage(0), unheard(1, 1, 0.1))


@pytest.mark.parametrize(
    ("phase", "reported", "ring_status", "shown"),
    [
        (Phase.STARTING, "starting", None, "starting"),
        (Phase.STARTING, "starting", UNHEARD, "starting"),
        (Phase.STARTING, "waiting for the other stages", stage_1_is(WAITING), "waiting for the other stages"),
        (Phase.STARTING, "loading 43%", stage_1_is(LOADING), "loading 43%"),
        (Phase.STARTING, "waiting for the other stages", stage_1_is(LOADING), "loading"),
        (Phase.STARTING, "loading 100%", stage_1_is(WARMING_UP), "warming up"),
        (Phase.STARTING, "loading 100%", stage_1_is(READY), "loaded"),
        (Phase.STARTING, "loading 100%", stage_1_is(COMPUTING), "loaded"),
        (Phase.READY, "loading 100%", stage_1_is(READY), "ready"),
        (Phase.READY, "loading 100%", stage_1_is(COMPUTING), "computing"),
        (Phase.READY, "loading 100%", None, "ready"),
        (Phase.DRAINING, "loading 100%", stage_1_is(COMPUTING), "draining"),
        (Phase.RESTING, "loading 100%", stage_1_is(READY), "waiting to restart"),
    ],
)
def test_the_phase_comes_from_the_best_source(
    phase: Phase, reported: str, ring_status: RingStatus | None, shown: str
) -> None:
    assert stage_phase(view(phase, reported, ring_status), 1) == shown


@pytest.mark.parametrize("phase", [Phase.CLEARING, Phase.RESTING])
def test_a_surviving_stage_waits_for_those_that_are_restarted(phase: Phase) -> None:
    known = view(phase, "loaded", stage_1_is(WAITING))
    stage_0_restarts = replace(known, state=replace(known.state, places=(0,)))
    assert [stage_phase(stage_0_restarts, number) for number in (0, 1)] == [str(phase), "waiting for the other stages"]


@pytest.mark.parametrize("phase", list(Phase))
def test_a_stage_without_a_process_is_not_running(phase: Phase) -> None:
    assert stage_phase(view(phase, "ready", stage_1_is(READY), running=False), 1) == "not running"
    not_started = stage_phase(PipelineView(State(phase), SPECS, (), 0), 1)
    assert not_started == ("starting" if phase is Phase.STARTING else "not running")


def test_the_status_includes_the_rings_data() -> None:
    link = msgspec.structs.replace(LINK, last_error="a message was lost")
    last = stage(1, COMPUTING, link=link, steps=9, beat_age_s=0.25)
    described = describe_pipeline(view(Phase.READY, "loading 100%", ring(stage(0), last)))
    first, second = described["stages"]
    assert (second["phase"], second["steps"], second["still_s"], second["rtt_ms"]) == ("computing", 9, 0.25, 1.5)
    assert (second["layers"], second["pid"]) == ([2, 4], os.getpid())
    assert (second["generation"], second["epoch"]) == (2, 2)
    assert second["memory"] > 1 << 20
    for name, value in {
        "peer": "stage 2", "state": "connected", "epoch": 3, "rtt_ms": 1.5, "queue": 4, "bytes_sent": 1000,
        "bytes_received": 900, "messages_sent": 10, "last_error": "a message was lost",
    }.items():  # fmt: skip
        assert second["link"][name] == value
    assert first["link"]["last_error"] == ""
    assert described["head"]["link"]["peer"] == "stage 0"
    assert (described["run"], described["model"], described["restarts"]) == ("run", "tiny", 1)


def test_without_a_ring_status_there_are_no_links() -> None:
    for stage_ in describe_pipeline(view(Phase.STARTING, "starting"))["stages"]:
        assert (stage_["link"], stage_["rtt_ms"], stage_["steps"]) == (None, None, None)


def test_the_backends_phase_names_each_stages() -> None:
    known = view(Phase.STARTING, "loading 43%", ring(stage(0, WARMING_UP), stage(1, LOADING)))
    assert backend_state(known).phase == "starting: stage 0 warming up, stage 1 loading 43%"
    assert backend_state(view(Phase.READY, "x", stage_1_is(COMPUTING))).phase == "ready"


def test_the_display_shows_computing_as_ready() -> None:
    def shown(last: StageStatus) -> list[str]:
        return [row.phase for row in rows_of("p", view(Phase.READY, "x", ring(stage(0), last)))]

    assert shown(stage(1, COMPUTING)) == shown(stage(1, READY)) == ["ready", "ready"]


def test_a_recovering_ring_takes_no_request_although_every_process_runs() -> None:
    ring_ = msgspec.structs.replace(
        stage_1_is(COMPUTING), phase=RECOVERING, recoveries=2, stall_s=1.5, recomputed_tokens=7
    )
    known = view(Phase.READY, "loaded", ring_)
    assert (backend_state(known).ready, backend_state(known).phase) == (False, "recovering")
    described = describe_pipeline(known)
    assert [described[key] for key in ("recoveries", "stall_s", "recomputed_tokens")] == [2, 1.5, 7]
