# SPDX-License-Identifier: Apache-2.0
"""Randomly changed input files are accepted or refused with a ZppError: no crash, no hang, no file outside."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from checkpoints import write_checkpoint
from hypothesis import strategies as st
from odd_values import ODD_TEXT, few_or_many, fuzz, listing, mutated
from typer.main import get_command

from zpptool.checkpoint.explain import explain
from zpptool.checkpoint.header import read_header
from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.manifest import Manifest
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.cli.app import app
from zpptool.cli.settings import read_settings
from zpptool.config.plan import load_plan_file, make_plan, plan_faults
from zpptool.deploy.compose import compose_files
from zpptool.deploy.deployment import Deployment, check_deployment
from zpptool.deploy.kubernetes.manifests import kubernetes_files
from zpptool.deploy.output import write_directory
from zpptool.deploy.systemd import systemd_files
from zpptool.errors import ZppError
from zpptool.file_names import is_inner_path

pytestmark = pytest.mark.timeout(3000)


@few_or_many
def test_a_manifest(count: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "in/model", shards=2)
    split_checkpoint(model, tmp_path / "in/split", 2)
    path = tmp_path / "in/split/stage_0" / STAGE_FILE
    valid = json.loads(path.read_bytes())

    def check(value: Any) -> None:
        with suppress(msgspec.ValidationError, OverflowError, ValueError, RecursionError):
            path.write_bytes(json.dumps(value).encode())
            path.write_bytes(msgspec.convert(value, Manifest).to_bytes())
        before = listing(tmp_path)
        with suppress(ZppError):
            verify_split(find_target(tmp_path / "in/split"))
        with suppress(ZppError):
            write_join(plan_join(tmp_path / "in/split"), tmp_path / "joined")
        shutil.rmtree(tmp_path / "joined", ignore_errors=True)
        for left in tmp_path.glob(".joined*"):
            shutil.rmtree(left, ignore_errors=True)
        assert listing(tmp_path) == before

    fuzz(count, mutated(valid), check)


@few_or_many
def test_a_plan_and_what_is_deployed_from_it(count: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    plan = make_plan(model, num_stages=2, base_port=15550, api_port=8000, hosts=["a", "b"], engine_args=["--seed", "7"])
    path = tmp_path / "zpp.yaml"
    valid = yaml.safe_load(plan.to_yaml())
    (tmp_path / "deep").mkdir()

    def check(value: Any) -> None:
        path.write_text(yaml.safe_dump(value, allow_unicode=True))
        before = listing(tmp_path)
        with suppress(ZppError):
            loaded = load_plan_file(path)
            plan_faults(loaded, model)
            assert loaded.digest
            for source in (loaded.model, "hf://org/name", "pvc://claim/x"):
                for make in (kubernetes_files, compose_files, systemd_files):
                    with suppress(ZppError):
                        deployment = Deployment(plan=loaded, name="zpp", image="zpptool:1", source=source)
                        files = make(check_deployment(deployment))
                        write_directory(files, tmp_path / "deep/out", force=True)
                        for name, text in files.items():
                            assert name.endswith((".service", ".target")) or yaml.safe_load_all(text)
                            if name.endswith(".service"):
                                assert text.count("ExecStart") == 1 + deployment.is_hub
        shutil.rmtree(tmp_path / "deep/out", ignore_errors=True)
        assert listing(tmp_path) == before
        assert os.listdir(tmp_path / "deep") == []

    fuzz(count, mutated(valid), check)


@few_or_many
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_config_and_an_index(count: int, name: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=2)
    valid = json.loads((model / name).read_bytes())
    if name == "config.json":
        valid |= {"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "b"], "text_config": {"hidden_size": 8}}

    def check(value: Any) -> None:
        (model / name).write_text(json.dumps(value))
        before = listing(tmp_path)
        with suppress(ZppError):
            explain(plan_split(model, 2))
        with suppress(ZppError):
            make_plan(model, num_stages=2, base_port=15550, api_port=8000)
        assert listing(tmp_path) == before

    fuzz(count, mutated(valid), check)


@few_or_many
def test_a_header(count: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    path = model / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    lengths = st.one_of(st.none(), st.sampled_from([0, 7, 1 << 20, 1 << 40, (1 << 64) - 1]))

    def check(value: tuple[Any, int | None]) -> None:
        changed = json.dumps(value[0]).encode()
        length = len(changed) if value[1] is None else value[1]
        path.write_bytes(length.to_bytes(8, "little") + changed + raw[start:])
        with suppress(ZppError):
            read_header(path)
        with suppress(ZppError):
            plan_split(model, 2)

    fuzz(count, st.tuples(mutated(header), lengths), check)


@few_or_many
def test_arbitrary_text(count: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=2)
    root: Any = get_command(app)
    signs = list("[]{}:,-&*!?|>'\"%@`#\n\t 0123456789.abx_=<")
    marks = st.sampled_from([*signs, "<<: ", "!!int ", "0x", "1:", "- ", "2024-13-99"])
    texts = st.one_of(st.lists(marks, max_size=60).map("".join), st.text(max_size=60), st.sampled_from(ODD_TEXT))

    def check(text: str) -> None:
        raw = text.encode(errors="surrogatepass")
        for name in ("config.json", INDEX_NAME, "zpp.yaml"):
            (model / name).write_bytes(raw)
        for read in (read_index, lambda _model: load_plan_file(model / "zpp.yaml"),
                     lambda _model: read_settings(model / "zpp.yaml", root)):  # fmt: skip
            with suppress(ZppError):
                read(model)

    fuzz(count, texts, check)


@few_or_many
def test_settings(count: int, tmp_path: Path) -> None:
    root: Any = get_command(app)
    valid = {"base-port": 15550, "split": {"num-stages": 2}, "run-stage": {"engine-args": ["--x", "y"]}, "hosts": ["a"]}

    def check(value: Any) -> None:
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(value, allow_unicode=True))
        with suppress(ZppError):
            read_settings(tmp_path / "x.yaml", root)

    fuzz(count, mutated(valid), check)


@few_or_many
def test_an_accepted_inner_path_is_inside(count: int, tmp_path: Path) -> None:
    parts = st.lists(st.one_of(st.sampled_from([*ODD_TEXT, "/", "//", "./"]), st.text(max_size=4)), max_size=5)

    def check(names: list[str]) -> None:
        for path in ("".join(names), "/".join(names)):
            if is_inner_path(path):
                assert os.path.normpath(tmp_path / path) == str(tmp_path / path)
                assert (tmp_path / path).is_relative_to(tmp_path)

    fuzz(count, parts, check)


def test_a_stage_of_which_every_file_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    split_checkpoint(write_checkpoint(tmp_path / "model", shards=2), tmp_path / "split", 2)
    for path in sorted(path for path in (tmp_path / "split/stage_0").rglob("*") if path.is_file()):
        if path.name == INDEX_NAME:  # join writes a new one
            continue
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with suppress(ZppError):
            assert not verify_split(find_target(tmp_path / "split")).valid
        with pytest.raises(ZppError):
            write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
        path.unlink()
        path.write_bytes(content)
    read_index(tmp_path / "split/stage_0")
