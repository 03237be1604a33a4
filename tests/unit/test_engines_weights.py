# SPDX-License-Identifier: Apache-2.0
"""A stage reads its own tensors bit for bit, whatever their format, and hardly anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from zpptool.checkpoint.split import split_checkpoint  # noqa: E402
from zpptool.checkpoint.stage_tensors import load_plan  # noqa: E402
from zpptool.engines.weights import read_tensor, read_tensors  # noqa: E402
from zpptool.partition import LayerRange  # noqa: E402

PARTITION = (LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4))
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 256,
    "vocab_size": 64, "tie_word_embeddings": True,
}  # fmt: skip

COUNTED = """
import json, os, sys
from pathlib import Path
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.engines.weights import read_tensors
from zpptool.partition import LayerRange
directory, stage, ranges = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])

def load():
    plan = load_plan(directory, stage, tuple(LayerRange(*own) for own in ranges))
    for _name, _tensor in read_tensors(plan):
        pass
    return sum(info.nbytes for info in plan)

def counted(name):
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())[name])

load()  # reads of Python's imports are not counted
for file in directory.glob("*.safetensors"):
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
asked, disk = counted("rchar"), counted("read_bytes")
own = load()
print(json.dumps({"own": own, "asked": counted("rchar") - asked, "disk": counted("read_bytes") - disk}))
"""


def quantised(kind: str, scale: int) -> dict[str, torch.Tensor]:
    """The tensors of one projection, `scale` times 16 wide."""
    wide = 16 * scale
    integers = torch.randint(-(2**31), 2**31 - 1, (wide // 8, wide), dtype=torch.int32)
    match kind:
        case "gptq":
            return {
                "qweight": integers, "qzeros": integers[:1, : wide // 8].clone(),
                "scales": torch.randn(1, wide).half(), "g_idx": torch.arange(wide, dtype=torch.int32),
            }  # fmt: skip
        case "fp8":
            scales = torch.rand(max(wide // 128, 1), 1)
            return {"weight": torch.randn(wide, wide).to(torch.float8_e4m3fn), "weight_scale_inv": scales}
        case "compressed-tensors":
            weight = torch.randint(-128, 127, (wide, wide), dtype=torch.int8)
            return {"weight": weight, "weight_scale": torch.rand(wide, 1).bfloat16()}
    return {"weight": torch.randn(wide, wide).bfloat16()}


def checkpoint(directory: Path, kind: str, scale: int = 2) -> Path:
    """A tied checkpoint of four layers in two files, with that kind of projections."""
    torch.manual_seed(0)
    directory.mkdir()
    tensors = {"model.embed_tokens.weight": torch.randn(64, 16).bfloat16(), "model.norm.weight": torch.randn(16)}
    for layer in range(4):
        for projection in ("q_proj", "o_proj"):
            for name, tensor in quantised(kind, scale).items():
                tensors[f"model.layers.{layer}.self_attn.{projection}.{name}"] = tensor
    names = sorted(tensors)
    files = {name: f"part-{number * 2 // len(names)}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (directory / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"quant_method": kind}}))
    torch.save(tensors, directory / "truth.pt")
    return directory


@pytest.mark.parametrize("kind", ["plain", "gptq", "fp8", "compressed-tensors"])
def test_dynamic_and_pre_split_stages_read_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", kind)
    truth = torch.load(model / "truth.pt")
    split_checkpoint(model, tmp_path / "stages", ranges=list(map(str, PARTITION)))
    seen: list[str] = []
    for stage in range(3):
        dynamic = dict(read_tensors(load_plan(model, stage, PARTITION)))
        presplit = dict(read_tensors(load_plan(tmp_path / "stages" / f"stage_{stage}", stage, PARTITION)))
        assert dynamic.keys() == presplit.keys()
        for name, tensor in dynamic.items():
            for other in (presplit[name], truth[name]):
                assert tensor.dtype == other.dtype
                assert tensor.view(torch.uint8).equal(other.view(torch.uint8))
        seen += dynamic
    assert set(seen) == set(truth)
    assert sorted({name for name in seen if seen.count(name) > 1}) == ["model.embed_tokens.weight"]  # tied


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_reads_hardly_more_than_its_own_bytes(stage: int, tmp_path: Path) -> None:
    """Counted by the kernel, headers and config included: at most 1.02 times, of read calls and (where the files are
    on one) of the disk."""
    model = checkpoint(tmp_path / "model", "plain", scale=64)
    ranges = json.dumps([[own.start, own.end] for own in PARTITION])
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(model), str(stage), ranges], capture_output=True, text=True, check=True
    )
    counted = json.loads(done.stdout)
    assert counted["own"] > 2 << 20
    assert counted["own"] <= counted["asked"] <= 1.02 * counted["own"]
    assert counted["disk"] <= 1.02 * counted["own"]


def test_read_tensor_and_read_tensors_give_the_same(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "plain")
    plan = load_plan(model, 1, PARTITION)
    for (name, tensor), info in zip(read_tensors(plan), plan, strict=True):
        assert name == info.name
        assert tensor.equal(read_tensor(info))
