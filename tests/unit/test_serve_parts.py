# SPDX-License-Identifier: Apache-2.0
"""The decisions of serving, without processes: who is asked, what fits, what is said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from checkpoints import llama, llama_config, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_discovery import Card
from zpptool.config.memory_budget import refuse_too_much
from zpptool.console import Console
from zpptool.errors import ExitCode, ZppError
from zpptool.log import LogFormat, LogLevel, configure
from zpptool.process import progress as phases
from zpptool.process.environment import PHASE_VARIABLE
from zpptool.serve.display import PlainDisplay, Row
from zpptool.serve.gpus import refuse_full, refuse_unseen
from zpptool.serve.http_exchange import Asked, tells_of_a_fault
from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving
from zpptool.serve.load_balancing import BackendState, Upstream, choose, phase_of_all
from zpptool.serve.metrics import generated_tokens, merged
from zpptool.serve.remote import checked_address
from zpptool.serve.throughput import WINDOW_S, add_sample, rate_of


def upstream(name: str, *, ready: bool = True, in_flight: int = 0, last: int = 0, suspect: float = 0.0) -> Upstream:
    state = BackendState("http://x", ready, generation=1)
    return Upstream(name, state, in_flight, last_taken=last, suspect_until=suspect)


def test_the_one_that_does_least_is_asked_and_of_equals_the_one_that_rested_longest() -> None:
    assert choose([upstream("a", in_flight=2), upstream("b", in_flight=1)], {}, 0.0).name == "b"
    assert choose([upstream("a", last=5), upstream("b", last=4)], {}, 0.0).name == "b"


def test_where_a_request_has_failed_it_goes_last() -> None:
    both = [upstream("a"), upstream("b", in_flight=9)]
    assert choose(both, {("a", 1): 1}, 0.0).name == "b"
    assert choose(both, {("a", 0): 1}, 0.0).name == "a", "that was in another generation"


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0, 2)), max_size=5),
    st.floats(0, 2),
)
def test_only_one_that_is_ready_and_not_suspect_is_ever_asked(all_: list[tuple[bool, int, float]], now: float) -> None:
    upstreams = [
        upstream(str(number), ready=ready, in_flight=load, suspect=until)
        for number, (ready, load, until) in enumerate(all_)
    ]
    able = [each for each in upstreams if each.standing.ready and each.suspect_until <= now]
    chosen = choose(upstreams, {}, now)
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen in able
        assert chosen.in_flight == min(each.in_flight for each in able)


def test_the_phase_of_several_names_them() -> None:
    assert phase_of_all([upstream("a", ready=False), upstream("b")]) == "ready"
    assert phase_of_all([upstream("a", ready=False), upstream("b", ready=False)]) == "a: new; b: new"


@pytest.mark.parametrize(
    ("method", "target", "may"),
    [
        ("POST", b"/v1/completions", True),
        ("POST", b"/v1/chat/completions?x=/y", True),
        ("POST", b"/tokenize", True),
        ("GET", b"/v1/models", True),
        ("POST", b"/v1/load_lora_adapter", False),
        ("DELETE", b"/v1/responses/7", False),
        ("POST", b"/v1/responses/7/cancel", False),
    ],
)
def test_what_may_be_asked_twice(method: str, target: bytes, may: bool) -> None:
    assert Asked(method, target, [], b"").may_be_repeated is may


@pytest.mark.parametrize(
    ("kind", "piece", "is_fault"),
    [
        (b"text/event-stream; charset=utf-8", b'data: {"error": {"message": "x"}}\n\n', True),
        (b"text/event-stream", b'data: {"choices": [], "error": null}\n\n', False),
        (b"text/event-stream", b"data: [DONE]\n\n", False),
        (b"text/event-stream", b"data: {cut", False),
        (b"text/event-stream", b"", False),
        (b"application/json", b'data: {"error": 1}\n\n', False),
    ],
)
def test_a_stream_that_begins_with_a_fault(kind: bytes, piece: bytes, is_fault: bool) -> None:
    assert tells_of_a_fault(kind, piece) is is_fault


def test_one_servers_metrics_are_passed_on_as_they_are() -> None:
    text = "anything # at all\n\n"
    assert merged({"a": text}, "# TYPE y gauge\ny 1\n") == text + "# TYPE y gauge\ny 1\n"


def test_merged_metrics_keep_values_and_labels() -> None:
    text = '# TYPE x gauge\nx{a="b,}c"} 1e-3 1700\nx 2\n'
    assert merged({'p"q': text, "r": ""}, "") == (
        '# TYPE x gauge\nx{replica="p\\"q",a="b,}c"} 1e-3 1700\nx{replica="p\\"q"} 2\n'
    )


def test_what_another_front_tells_of_itself_stands_beside_ones_own() -> None:
    own = '# TYPE x gauge\nx{replica="p"} 1\n'
    theirs = '# TYPE x gauge\nx{replica="p",peer="a"} 2\n# TYPE z gauge\nz 3\n'
    assert merged({"far": theirs}, own) == (
        '# TYPE x gauge\nx{replica="p"} 1\nx{replica="far",exported_replica="p",peer="a"} 2\n'
        '# TYPE z gauge\nz{replica="far"} 3\n'
    )


def test_tokens_are_counted_over_all_labels() -> None:
    assert generated_tokens('vllm:generation_tokens_total{m="a"} 2.0\nvllm:generation_tokens_total{m="b"} 3e0\n') == 5
    assert generated_tokens("vllm:generation_tokens_created 9\n") == 0


def test_a_rate_is_of_the_last_seconds_and_survives_a_restart() -> None:
    samples: deque[tuple[float, float]] = deque()
    assert rate_of(samples) is None
    for second in range(20):
        add_sample(samples, float(second), 10.0 * second)
    assert rate_of(samples) == pytest.approx(10.0)
    assert samples[0][0] >= 19 - WINDOW_S - 1
    add_sample(samples, 20.0, 5.0)
    assert rate_of(samples) is None
    add_sample(samples, 21.0, 8.0)
    assert rate_of(samples) == pytest.approx(3.0)


def test_a_phase_is_told_in_a_file_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage-0"
    assert phases.read_phase(path) == phases.STARTING
    phases.report_phase("nobody asked")
    monkeypatch.setenv(PHASE_VARIABLE, str(path))
    read = phases.loading_progress(1000)
    assert phases.read_phase(path) == "loading 0%"
    read(430)
    assert phases.read_phase(path) == "loading 43%"
    phases.report_phase("ready")
    assert phases.read_phase(path) == "ready"
    monkeypatch.setenv(PHASE_VARIABLE, str(tmp_path / "no" / "such"))
    phases.report_phase("lost")


@pytest.mark.usefixtures("own_logging")
def test_a_pipe_gets_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.TEXT)
    display = PlainDisplay(Console())
    for phase in ("starting", "starting", "loading 0%", "loading 12%", "loading 50%", "loaded", "ready", "ready"):
        display.show([Row("pipeline", 1, "2-4", 7, phase)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["starting", "loading 0%", "loading 50%", "loaded", "ready"]
    assert lines[0] == "pipeline, stage 1 (layers 2-4, pid 7): starting"


def test_gpus_hold_the_weights_or_are_refused() -> None:
    found = [Card("0", "GPU-aa", 80000 << 20, 40100 << 20), Card("1", "GPU-bb", 200 << 20, 100 << 20)]
    refuse_full([("0",), ("GPU-aa",), ("MIG-1",)], [1 << 30, 1 << 30, 1 << 40], found)
    refuse_full([("1",)], [1 << 40], [Card("1", "GPU-bb", None, None)])
    for shared in ([("1",), ("1",)], [("1",), ("GPU-bb",)], [("0", "1"), ("1", "0")]):
        with pytest.raises(ZppError, match=r"GPU 1 has 100\.0 MiB free, and the weights for it take 120\.0 MiB"):
            refuse_full(shared, [60 << 20, 60 << 20], found)
    refuse_unseen([("0",)], found)
    with pytest.raises(ZppError, match="--gpu-ids 0: nvidia-smi finds no GPU"):
        refuse_unseen([("0",)], [])


def test_weights_that_do_not_fit_are_refused() -> None:
    refuse_too_much([10, 20], 30)
    with pytest.raises(ZppError, match="take 31 B, and 30 B of memory"):
        refuse_too_much([10, 21], 30)


@pytest.mark.parametrize("text", ["10.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://a?x=1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ZppError) as refused:
        checked_address(text)
    assert refused.value.exit_code == ExitCode.USAGE


def test_an_address_is_taken_without_its_slash() -> None:
    assert checked_address("https://a:8000/") == "https://a:8000"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))
    return tmp_path / "model"


@pytest.fixture
def planned(model: Path) -> Callable[..., tuple[PipelineLaunchPlan, ...]]:
    def plan(**changes: object) -> tuple[PipelineLaunchPlan, ...]:
        wish = {
            "model": model, "pipeline_dir": None, "plan_file": None, "num_stages": 2, "ranges": (),
            "engine": Engine.TRANSFORMERS, "dtype": "auto", "device": "cpu", "gpu_ids": (), "port": 0,
            "base_port": None, "api_port": None, "replicas": 1, "served_name": "", "engine_args": (),
            "start_timeout_s": 1.0, "step_timeout_s": 1.0, "beat_timeout_s": 1.0, "recovery_deadline_s": 120.0,
        }  # fmt: skip
        return plan_serving(ServeOptions(**{**wish, **changes}))  # type: ignore[arg-type]

    return plan


def test_over_ipc_every_start_has_addresses_of_its_own(planned, tmp_path: Path) -> None:
    [order] = planned()
    first, second = order.at(tmp_path / "a"), order.at(tmp_path / "b")
    assert first[0].bind == first[1].connect == f"ipc://{tmp_path}/a/zpp-15550"
    assert {spec.api_port for spec in first} != {spec.api_port for spec in second}
    assert [spec.layers.start for spec in first] == [0, 2]


def test_replicas_have_ports_one_behind_the_other(planned, tmp_path: Path) -> None:
    orders = planned(replicas=2, base_port=21000, api_port=21900)
    assert [order.at(tmp_path)[0].bind for order in orders] == ["tcp://127.0.0.1:21000", "tcp://127.0.0.1:21003"]
    assert [order.at(tmp_path)[1].bind for order in orders] == ["tcp://127.0.0.1:21002", "tcp://127.0.0.1:21005"]
    assert [order.at(tmp_path)[0].api_port for order in orders] == [21900, 21901]


def test_vllms_stages_share_one_cpus_memory_for_their_caches(planned) -> None:
    [order] = planned(engine=Engine.VLLM)
    *_, flag, share = order.specs[0].engine_args
    assert flag == "--kv-cache-memory-bytes"
    assert 0 < 2 * int(share) < psutil.virtual_memory().total
    own = ("--kv_cache_memory_bytes=1000",)
    assert planned(engine=Engine.VLLM, engine_args=own)[0].specs[0].engine_args == own


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"num_stages": 9}, ExitCode.INVALID, "9 stages"),
        ({"num_stages": None}, ExitCode.USAGE, "how many stages"),
        ({"engine_args": ("--port=1",)}, ExitCode.USAGE, "is for the front"),
        ({"engine_args": ("--api_key", "x")}, ExitCode.USAGE, "is for the front"),
        ({"gpu_ids": (("0",),)}, ExitCode.USAGE, "1 GPUs are given for 2 stages"),
        ({"base_port": 65534}, ExitCode.ADDRESS, "65535"),
        ({"base_port": 21000, "api_port": 21002}, ExitCode.ADDRESS, "21002"),
        ({"base_port": 21000, "port": 21002}, ExitCode.ADDRESS, "the front's port 21002"),
        ({"base_port": 21000, "port": 21005, "replicas": 2}, ExitCode.ADDRESS, "the front's port 21005"),
        ({"api_port": 21002, "port": 21002}, ExitCode.ADDRESS, "the front's port 21002"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(planned, changes, code: ExitCode, words: str) -> None:
    with pytest.raises(ZppError) as refused:
        planned(**changes)
    assert refused.value.exit_code == code
    assert words in refused.value.message
