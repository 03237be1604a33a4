# SPDX-License-Identifier: Apache-2.0
"""What identifies a pipeline that a batch starts, and what makes its answers invariant."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.batch.identity import refuse_other
from zpptool.batch.invariance import invariant_arguments, recovers, refuse_other_server
from zpptool.batch.model_files import files_digest, pipeline_identity, without_cache_size
from zpptool.config.engine_kind import SINGLE_SEQUENCE_SCHEDULER, Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ZppError
from zpptool.serve.launch_plan import ServeOptions, plan_serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))


def identity(model: Path, **changes: object) -> dict[str, str]:
    options = {
        "model": model, "pipeline_dir": None, "plan_file": None, "num_stages": 2, "ranges": (),
        "engine": Engine.TRANSFORMERS, "dtype": "auto", "gpu_ids": (), "port": 0,
        "base_port": None, "api_port": None, "replicas": 1, "served_name": "", "engine_args": (),
        "runtime": RuntimeOptions(device="cpu", recovery_deadline_s=120.0),
    }  # fmt: skip
    return pipeline_identity(plan_serving(ServeOptions(**{**options, **changes}))[0].specs)  # type: ignore[arg-type]


def test_the_same_pipeline_is_the_same_whatever_ports_and_memory_it_gets(model: Path) -> None:
    first = identity(model)
    refuse_other("out", first, identity(model))
    assert first["plan"] == "0-2 2-4"
    [plan] = plan_serving(
        ServeOptions(
            model=model, pipeline_dir=None, plan_file=None, num_stages=2, ranges=(), engine=Engine.VLLM, dtype="auto",
            gpu_ids=(), port=0, base_port=None, api_port=None, replicas=1, served_name="",
            engine_args=("--max-model-len", "64"), runtime=RuntimeOptions(device="cpu"),
        )
    )  # fmt: skip
    assert any("--kv-cache-memory-bytes" in argument for argument in plan.specs[0].engine_args), "its share of memory"
    shares = [
        tuple(msgspec.structs.replace(spec, engine_args=("--max-model-len", "64", *more)) for spec in plan.specs)
        for more in (("--kv-cache-memory-bytes", "1"), ("--kv-cache-memory-bytes=22",), ())
    ]
    assert {pipeline_identity(specs)["engine arguments"] for specs in shares} == {"--max-model-len 64"}
    assert without_cache_size(["--kv_cache_memory_bytes=1", "-a", "--kv-cache-memory-bytes", "2", "b"]) == ["-a", "b"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"num_stages": 4}, "plan"), ({"dtype": "float32"}, "dtype"), ({"engine_args": ("--seed", "1")}, "engine argum")],
)
def test_another_pipeline_is_refused_by_name(model: Path, changes: dict[str, object], name: str) -> None:
    if "engine_args" in changes:
        changes = {**changes, "engine": Engine.VLLM}
    with pytest.raises(ZppError, match=f"another {name}"):
        refuse_other("out", identity(model), identity(model, **changes))


def test_sampling_defaults_and_weights_of_another_size_are_noticed(model: Path) -> None:
    known = {files_digest([model])}
    for name, content in (("generation_config.json", '{"temperature": 0.5}'), ("generation_config.json", "{}")):
        (model / name).write_text(content)
        known.add(files_digest([model]))
    with (model / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    known.add(files_digest([model]))
    assert len(known) == 4


def test_one_sequence_a_step_makes_vllm_invariant_and_contradictions_are_refused() -> None:
    assert invariant_arguments(Engine.TRANSFORMERS, ()) == ()
    assert SINGLE_SEQUENCE_SCHEDULER in invariant_arguments(Engine.VLLM, ("--max-model-len", "64"))
    assert (recovers(Engine.TRANSFORMERS), recovers(Engine.VLLM)) == (True, False)
    for given in ("--scheduler-cls=a.B", "--enable-prefix-caching"):
        with pytest.raises(ZppError, match="--invariant decides"):
            invariant_arguments(Engine.VLLM, (given,))


def test_a_server_that_may_batch_is_refused() -> None:
    refuse_other_server("http://a", {"served model": '{"owned_by":"zpptool","root":"/m"}'})
    with pytest.raises(ZppError, match="batches sequences as it likes"):
        refuse_other_server("http://a", {"served model": '{"owned_by":"vllm","root":"/m"}'})
