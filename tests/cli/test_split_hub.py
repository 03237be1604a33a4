# SPDX-License-Identifier: Apache-2.0
"""`zpptool split` of a model on the Hub: only the bytes that the stage needs are fetched, and they are the model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from checkpoints import llama, llama_config, write_checkpoint
from hubserver import COMMIT, Hub, serve_hub

from zpptool.checkpoint.manifest import Manifest, load_manifest
from zpptool.errors import ExitCode

pytest.importorskip("huggingface_hub")

LARGE = {name: (dtype, (shape[0], 64 * 1024)) for name, (dtype, shape) in llama().items() if len(shape) == 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama() | LARGE, shards=3)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub({"org/name": model}, tmp_path / "caches") as served:
        yield served


def tree(directory: Path) -> dict[str, bytes | Manifest]:
    """The files of a split by name; its manifests without what depends on where the model came from."""
    files: dict[str, bytes | Manifest] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        if path.name == "zpp-stage.json":
            files[name] = msgspec.structs.replace(load_manifest(path.parent), source=msgspec.UNSET, digest="")
        else:
            files[name] = path.read_bytes()
    return files


@pytest.mark.parametrize("named", ["org/name", "hf://org/name", f"hf://org/name@{COMMIT}"])
def test_a_stage_is_the_same_as_from_the_directory(zpptool, hub: Hub, model: Path, tmp_path: Path, named: str) -> None:
    ran = zpptool("split", named, "--num-stages", 4, "--stage", 2, "-o", tmp_path / "far", "--json", env=hub.env)
    assert ran.code == 0, ran.err
    assert [stage["stage"] for stage in ran.json["stages"]] == [2]
    assert zpptool("split", model, "--num-stages", 4, "--stage", 2, "-o", tmp_path / "near").code == 0
    assert tree(tmp_path / "far") == tree(tmp_path / "near")
    assert load_manifest(tmp_path / "far/stage_2").source == f"hf://org/name@{COMMIT}"
    assert zpptool("validate", tmp_path / "far/stage_2", "--model", model).code == 0


def test_only_the_bytes_of_the_stage_are_fetched(zpptool, hub: Hub, model: Path, tmp_path: Path) -> None:
    ran = zpptool("split", "org/name", "--num-stages", 4, "--stage", 1, "-o", tmp_path / "out", "--json", env=hub.env)
    assert ran.code == 0, ran.err
    (stage,) = ran.json["stages"]
    weights = [path.name for path in model.glob("*.safetensors")]
    all_bytes = sum((model / name).stat().st_size for name in weights)
    fetched = sum(hub.bytes_of(name) for name in weights)
    headers_and_samples = len(weights) * 128 * 1024 + 32 * 64
    assert stage["bytes"] <= fetched <= stage["bytes"] + headers_and_samples
    assert fetched < all_bytes / 2


def test_a_dry_run_fetches_headers_only(zpptool, hub: Hub, tmp_path: Path) -> None:
    ran = zpptool("split", "org/name", "--num-stages", 2, "--dry-run", env=hub.env)
    assert ran.code == 0, ran.err
    assert f"hf://org/name@{COMMIT}: 4 layers" in ran.out
    assert all(count <= 128 * 1024 for _name, _start, count in hub.sent)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_whole_split_from_the_hub_is_the_one_from_the_directory(zpptool, hub: Hub, model, tmp_path) -> None:
    hub.cut_after = 300_000
    ran = zpptool("split", "org/name", "--num-stages", 2, "-o", tmp_path / "far", env=hub.env)
    assert ran.code == 0, ran.err
    assert hub.cut_after is None, "the connection was not cut"
    assert zpptool("split", model, "--num-stages", 2, "-o", tmp_path / "near").code == 0
    assert tree(tmp_path / "far") == tree(tmp_path / "near")


def test_a_second_run_keeps_existing_stages(zpptool, hub: Hub, tmp_path: Path) -> None:
    words = ["split", "org/name", "--num-stages", 2, "--stage", 0, "-o", tmp_path / "out", "--json"]
    assert zpptool(*words, env=hub.env).json["kept"] is False
    hub.sent.clear()
    assert zpptool(*words, env=hub.env).json["kept"] is True
    assert max(count for _name, _start, count in hub.sent) <= 128 * 1024


@pytest.mark.parametrize(
    ("named", "code", "message"),
    [
        ("org/other", ExitCode.INVALID, "neither a local directory nor a model on the Hub"),
        ("hf://org/name@nowhere", ExitCode.INVALID, "no revision nowhere"),
        ("hf://name", ExitCode.USAGE, "names no model on the Hub"),
    ],
)
def test_refusals(zpptool, hub: Hub, tmp_path: Path, named: str, code: ExitCode, message: str) -> None:
    ran = zpptool("split", named, "--num-stages", 2, "-o", tmp_path / "out", env=hub.env)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_a_closed_model_asks_for_a_token(zpptool, hub: Hub) -> None:
    hub.token = "hf_secret"
    words = ["split", "org/name", "--num-stages", 2, "--dry-run"]
    ran = zpptool(*words, env=hub.env)
    assert ran.code == ExitCode.INVALID
    assert "HF_TOKEN" in ran.err
    assert zpptool(*words, env={**hub.env, "HF_TOKEN": "hf_secret"}).code == 0


def test_a_server_without_ranges_and_a_missing_server_are_named(zpptool, hub: Hub) -> None:
    hub.ranges = False
    ran = zpptool("split", "org/name", "--num-stages", 2, "--dry-run", env=hub.env)
    assert ran.code == ExitCode.FAILURE
    assert "does not support range requests" in ran.err
    gone = zpptool(
        "split", "org/name", "--num-stages", 2, "--dry-run", env={**hub.env, "HF_ENDPOINT": "http://[::1]:9"}
    )
    assert gone.code == ExitCode.FAILURE
    assert "fetching it from the Hub failed" in gone.err


def test_a_directory_takes_precedence_over_the_hub(zpptool, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    write_checkpoint(tmp_path / "org/name", llama(2), llama_config(2))
    monkeypatch.chdir(tmp_path)
    ran = zpptool("split", "org/name", "--num-stages", 2, "--dry-run", "--json", env=hub.env)
    assert ran.json["num_layers"] == 2
    assert not hub.sent


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json", "a//b.json", "a\nb.json", "config.json/x", "."])
def test_a_name_that_leads_outside_is_refused(zpptool, hub: Hub, tmp_path: Path, name: str) -> None:
    hub.more_names.append(name)
    ran = zpptool("split", "org/name", "--num-stages", 2, "--dry-run", "--json", env=hub.env)
    assert ran.code == ExitCode.INVALID, ran.err
    assert "the repository names the file" in ran.json["error"]["message"]
