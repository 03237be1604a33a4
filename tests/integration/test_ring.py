# SPDX-License-Identifier: Apache-2.0
"""The ring with real links, its stages as threads: calls, their answers and their tensors keep their order."""

from __future__ import annotations

import logging
import random
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest
from stages import free_base_port
from toys import Ring, changed, ring_specs, run_stage, threads

from zpptool.errors import ExitCode, ZppError
from zpptool.log import TextFormatter
from zpptool.wire.link import LinkRefused

pytestmark = pytest.mark.timeout(60)


def where(num_stages: int, more: bytes = b"") -> list[bytes]:
    return [str(stage).encode() + more for stage in range(num_stages)]


def trace(call: int, num_stages: int) -> list[bytes]:
    return [b" ".join([str(call).encode(), *where(num_stages)])]


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_ring_of_any_size_answers_over_both_transports(tmp_path: Path, num_stages: int, transport: str) -> None:
    base_port = free_base_port(num_stages + 1) if transport == "tcp" else None
    with threads(ring_specs(num_stages, tmp_path, base_port=base_port)) as ring:
        assert ring.ask("where", from_all=True) == where(num_stages)
        assert ring.ask("where", b"!") == where(num_stages, b"!")[-1:]
        assert ring.ask("step", b"7") == trace(7, num_stages)
    assert [run.result(5) for run in ring.stages] == [None] * num_stages


def test_many_calls_in_flight_keep_their_order_and_their_tensors(tmp_path: Path) -> None:
    with threads(ring_specs(3, tmp_path)) as ring:
        kinds = [random.Random(0).choice(["step", "where", "all"]) for _ in range(300)]
        calls = [
            ring.head.call("where" if kind == "all" else kind, str(number).encode(), from_all=kind == "all")
            for number, kind in enumerate(kinds)
        ]
        for number, (kind, call) in enumerate(zip(kinds, calls, strict=True)):
            wanted = {"step": trace(number, 3), "where": [f"2{number}".encode()], "all": where(3, str(number).encode())}
            assert call.result(10) == wanted[kind]


def test_calls_from_several_threads_each_get_their_own_answer(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path)) as ring, ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda number: ring.ask("where", str(number).encode()), range(200)))
    assert asked == [[f"1{number}".encode()] for number in range(200)]


def test_large_tensors_are_passed_on_as_small_ones_are(tmp_path: Path) -> None:
    with threads(ring_specs(3, tmp_path)) as ring:
        calls = [ring.head.call("step", bytes([number]) * (2 << 20), from_all=False) for number in range(10)]
        for number, call in enumerate(calls):
            assert call.result(10) == [bytes([number]) * (2 << 20) + b" 0 1 2"]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_call_that_fails_fails_alone_and_names_its_stage(tmp_path: Path, stage: int) -> None:
    with threads(ring_specs(3, tmp_path)) as ring:
        before = ring.head.call("step", b"1", from_all=False)
        failing = ring.head.call("fail", str(stage).encode(), from_all=True)
        refusing = ring.head.call("refuse", str(stage).encode(), from_all=True)
        after = ring.head.call("step", b"2", from_all=False)
        assert (before.result(5), after.result(5)) == (trace(1, 3), trace(2, 3))
        error, refusal = failing.exception(5), refusing.exception(5)
        assert ring.head.fault is None
    assert isinstance(error, ZppError)
    assert isinstance(refusal, ZppError)
    assert f"stage {stage}: fail failed: ValueError: stage {stage} fails as the test wants" in error.message
    assert "Traceback" in (error.hint or "")
    assert refusal.message == f"stage {stage}: refuse failed: stage {stage} will not"


def test_a_call_that_one_stage_fails_and_the_last_answers_is_settled_once(tmp_path: Path) -> None:
    """The first of the two answers counts, and the other is dropped."""
    with threads(ring_specs(3, tmp_path)) as ring:
        calls = [ring.head.call("fail", b"0", from_all=False) for _ in range(20)]
        for call in calls:
            assert call.exception(5) is not None or call.result() == [b"not me"]
        assert ring.ask("step", b"1") == trace(1, 3)
        assert ring.head.fault is None


def test_stages_may_be_started_in_any_order(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path)
    for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1)):
        with threads([specs[stage] for stage in order], head=specs[0], apart_s=0.05) as ring:
            assert ring.ask("where", from_all=True) == where(3)


def test_stages_that_do_not_fit_are_refused_with_the_reasons_on_both_sides(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path)
    misfits = (
        changed(specs[0]),
        changed(specs[1], model="other"),
        changed(specs[2], partition=((0, 2), (2, 5), (5, 6))),
    )
    ring = Ring(misfits, head=specs[0])
    try:
        ring.start()
        with pytest.raises(ZppError) as refused:
            ring.gather()
        errors = [run.exception(5) for run in ring.stages]
    finally:
        ring.close()
    assert refused.value.exit_code is ExitCode.INVALID
    for reason in ("stage 2: no stage owns layer 4", "has model other, the head has toy"):
        assert reason in refused.value.message
        for error in errors:
            assert isinstance(error, ZppError)
            assert reason in error.message
            assert error.exit_code is ExitCode.INVALID


def test_stages_with_different_numbers_of_stages_are_refused(tmp_path: Path) -> None:
    """Stage 2 of 4 binds another port than the last of 3, unless configured otherwise; then only the number differs."""
    specs = ring_specs(3, tmp_path)
    wrong = changed(specs[2], partition=(*specs[2].partition, (6, 8)))
    ring = Ring([*specs[:2], wrong], head=specs[0])
    try:
        ring.start()
        with pytest.raises(
            ZppError, match=r"stage 2 counts 4 stages, stage 1 3|head counts 3 stages, stage 2 4"
        ) as refused:
            ring.gather()
    finally:
        ring.close()
    assert refused.value.exit_code is ExitCode.INVALID


def test_a_stop_ends_every_stage_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zpptool")
    ring = Ring(ring_specs(3, tmp_path))
    ring.start()
    ring.gather()
    ring.head.stop("that was all")
    assert [run.result(2) for run in ring.stages] == [None] * 3
    ring.close()
    lines = [TextFormatter().format(record) for record in caplog.records]
    for stage in range(3):
        assert f"zpptool stage {stage}: the head has stopped the run: that was all" in lines


def test_answers_under_way_when_the_head_stops_are_no_loss(tmp_path: Path) -> None:
    with threads(ring_specs(3, tmp_path)) as ring:
        for _ in range(500):
            ring.head.call("where", b"x" * 1000, from_all=True)
    for stage in ring.stages:
        assert stage.exception() is None


def test_a_stage_that_waits_for_tensors_receives_the_stop(tmp_path: Path) -> None:
    ring = Ring(ring_specs(2, tmp_path))
    ring.start()
    ring.gather()
    waiting = ring.head.call("await tensors", b"1", from_all=True)
    ring.head.stop("that was all")
    assert [run.result(2) for run in ring.stages] == [None] * 2
    ring.close()
    assert isinstance(waiting.exception(1), ZppError)


def test_no_call_is_left_waiting_when_the_head_closes(tmp_path: Path) -> None:
    ring = Ring(ring_specs(1, tmp_path))
    ring.start()
    ring.gather()
    waiting = ring.head.call("await tensors", b"0", from_all=False)
    ring.close()
    assert isinstance(waiting.exception(1), ZppError)
    late = ring.head.call("where", b"", from_all=False)
    assert isinstance(late.exception(1), ZppError)


def test_a_cancelled_call_does_not_affect_others(tmp_path: Path) -> None:
    with threads(ring_specs(1, tmp_path)) as ring:
        calls = [ring.head.call("where", b"", from_all=False) for _ in range(50)]
        for call in calls:
            call.cancel()
        assert ring.ask("where") == [b"0"]
        assert ring.head.fault is None


def test_a_call_past_its_deadline_breaks_the_pipeline_and_names_the_silent_stage(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path)) as ring:
        silent = ring.head.call("await tensors", b"1", from_all=True, timeout_s=0.5)
        other = ring.head.call("where", b"", from_all=False)
        error = silent.exception(3)
        assert isinstance(error, ZppError)
        assert error.exit_code is ExitCode.STAGE
        assert "await tensors" in error.message
        assert "stage 1" in error.message
        assert "0.5 s" in error.message
        assert other.exception(1) is error
        assert ring.faults == [error]
        assert ring.head.call("where", b"", from_all=False).exception(1) is error


def test_a_stage_that_waits_too_long_for_tensors_names_the_stage_before(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path, step_s=0.5)) as ring:
        ring.head.call("await tensors", b"1", from_all=True, timeout_s=10)
        assert ring.broken.wait(3)
        assert "stage 1 has waited 0.5 s for the tensors of stage 0" in ring.faults[0].message
        assert isinstance(ring.stages[1].exception(3), ZppError)


def test_a_roll_call_that_does_not_come_back_names_the_missing_stage(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, start_s=2.4)
    ring = Ring([specs[0], specs[2]], head=changed(specs[0], start_timeout_s=1.2))
    try:
        ring.start()
        with pytest.raises(ZppError, match=r"the roll call has not returned in 1\.2 s") as late:
            ring.gather()
        ring.head.stop("the head has ended")
        errors = [run.exception(5) for run in ring.stages]
    finally:
        ring.close()
    assert late.value.exit_code is ExitCode.STAGE
    assert f"stage 1 is missing, it has not connected to {specs[0].bind}" in late.value.message
    assert "the head has stopped the run: the roll call has not returned" in str(errors[0])
    assert "stage 2 has waited 2.4 s for the roll call from stage 1" in str(errors[1])


def test_a_missing_stage_is_named_by_the_one_before_it(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, start_s=0.7)
    ring = Ring([specs[0]], head=changed(specs[0], start_timeout_s=5.0))
    try:
        ring.start()
        with pytest.raises(ZppError, match="head has lost stage 0"):
            ring.gather()
        errors = ring.stages[0].exception(5)
    finally:
        ring.close()
    assert "Stage 0 waited 0.7 s for stage 1" in str(errors)


def test_a_head_without_stage_0_names_it(tmp_path: Path) -> None:
    ring = Ring((), head=ring_specs(2, tmp_path, start_s=0.5)[0])
    try:
        with pytest.raises(ZppError, match=r"Head waited 0\.5 s for stage 0 .*it is not connected"):
            ring.gather()
    finally:
        ring.close()


def test_two_stages_with_the_same_place_on_one_address_are_refused(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path, base_port=free_base_port(3), start_s=1.0)
    ring = Ring([specs[1], specs[1]], head=specs[0])
    try:
        ring.start()
        error = next(as_completed(ring.stages, 0.9)).exception()
    finally:
        ring.close()
    assert isinstance(error, ZppError)
    assert error.exit_code is ExitCode.ADDRESS
    assert "in use by another process" in error.message


def test_a_second_stage_at_the_same_place_is_refused_and_the_ring_goes_on(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    with threads(specs) as ring, ThreadPoolExecutor() as pool:
        twin = pool.submit(run_stage, changed(specs[1], bind=f"ipc://{tmp_path}/twin"))
        refused = twin.exception(5)
        assert ring.ask("step", b"7") == trace(7, 2)
        assert ring.head.fault is None
    assert isinstance(refused, LinkRefused)
    assert "Stage 1: stage 0 refuses this link" in refused.message
    assert "another stage 1 is connected already" in refused.message
    assert (refused.stage, refused.peer, refused.endpoint) == (1, "stage 0", specs[1].connect)


def test_a_second_stage_that_may_wait_for_the_place_names_the_duplicate_in_the_end(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    twin = changed(specs[1], bind=f"ipc://{tmp_path}/twin", recovery_deadline_s=5.0, start_timeout_s=1.0)
    with threads(specs), ThreadPoolExecutor() as pool:
        error = pool.submit(run_stage, twin).exception(5)
    assert isinstance(error, ZppError)
    assert "stage 1 has waited 1 s for the roll call from stage 0" in error.message
    assert "refused there: another stage 1 is connected already" in error.message
    assert "Stop the other process of this stage" in (error.hint or "")


def test_a_stage_connected_to_the_wrong_one_is_refused(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, start_s=1.0)
    lost = changed(specs[2], connect=specs[0].bind)
    ring = Ring([*specs[:2], lost], head=specs[0])
    try:
        ring.start()
        with pytest.raises(ZppError, match=r"the roll call has not returned|stage 1 waited 1 s for stage 2|lost stage"):
            ring.gather()
        errors = [run.exception(5) for run in ring.stages]
    finally:
        ring.close()
    assert isinstance(errors[2], LinkRefused)
    assert "stage 1 is awaited here, not stage 2" in errors[2].message


def test_a_stage_of_another_plan_is_refused_by_both_sides_before_anything_is_sent(tmp_path: Path) -> None:
    specs = [changed(spec, plan_digest="abc") for spec in ring_specs(2, tmp_path)]
    ring = Ring([specs[0], changed(specs[1], plan_digest="xyz")], head=specs[0])
    try:
        ring.start()
        with pytest.raises(
            ZppError, match=r"stage 1 has plan digest xyz, stage 0 abc|head has plan digest abc, stage 1 xyz"
        ) as refused:
            ring.gather()
        errors = [run.exception(5) for run in ring.stages]
    finally:
        ring.close()
    assert refused.value.exit_code is ExitCode.INVALID
    for error in errors:
        assert isinstance(error, LinkRefused)
        assert error.exit_code is ExitCode.INVALID


def test_an_impossible_address_leaves_nothing_open(tmp_path: Path) -> None:
    spec = ring_specs(1, tmp_path)[0]
    with pytest.raises(ZppError) as refused:
        run_stage(changed(spec, local="nowhere"))
    assert refused.value.exit_code is ExitCode.ADDRESS
    Ring([spec]).close()  # binds what the refused one had bound
