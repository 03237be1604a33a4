# SPDX-License-Identifier: Apache-2.0
"""A split of three stages, and ways to damage it that validation has to detect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from checkpoints import llama, llama_config, write_checkpoint, write_safetensors

from zpptool.checkpoint.digest import digest_bytes, digest_file
from zpptool.checkpoint.header import read_header
from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.manifest import Manifest, SmallFile, load_manifest
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.streaming import CopyOptions

LAYERS = 6
UP = "model.layers.2.mlp.up_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"
WEIGHTS = "model-00001-of-00002.safetensors"
"""The first weight file of stage 1, which owns layers 2 and 3, each in its own file."""


def stage(split: Path, number: int = 1) -> Path:
    return split / f"stage_{number}"


def weights(split: Path) -> Path:
    return stage(split) / WEIGHTS


def header_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file's header JSON and keep its data."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    result = change(header)
    changed = result if isinstance(result, bytes) else json.dumps(header).encode()
    changed += b" " * (-len(changed) % 8)
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[start:])


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        entries = [(new if name == old else name, entry) for name, entry in header.items()]
        header.clear()
        header.update(entries)

    return change


def swap_layers(split: Path) -> None:
    """Swap the names of layers 2 and 3 in both files of the stage."""
    files = sorted(stage(split).glob("model-*.safetensors"))
    files[0].rename(files[0].with_suffix(".x"))
    files[1].rename(files[0])
    files[0].with_suffix(".x").rename(files[1])
    for path, old, new in ((files[0], ".3.", ".2."), (files[1], ".2.", ".3.")):
        for name in list(header_of(path)):
            with_header(path, renamed(name, name.replace(old, new)))


def swap_names(split: Path) -> None:
    stage(split, 0).rename(split / "aside")
    stage(split, 1).rename(stage(split, 0))
    (split / "aside").rename(stage(split, 1))


def flip(path: Path, tensor: str) -> None:
    place = next(own for own in read_header(path).tensors if own.name == tensor)
    with path.open("r+b") as stream:
        stream.seek(place.offset + 3)
        old = stream.read(1)
        stream.seek(place.offset + 3)
        stream.write(bytes([old[0] ^ 16]))


def blank(path: Path, tensor: str) -> None:
    place = next(own for own in read_header(path).tensors if own.name == tensor)
    with path.open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(bytes(place.nbytes))


def lengthen(path: Path, by: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + by)


def claim(path: Path, length: int) -> None:
    raw = path.read_bytes()
    path.write_bytes(length.to_bytes(8, "little") + raw[8:])


def shift(header: dict[str, Any], by: int) -> None:
    header[NORM]["data_offsets"] = [place + by for place in header[NORM]["data_offsets"]]


def rewrite(directory: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Change a manifest and update its own digest, as a skilled forger could."""
    (directory / STAGE_FILE).write_bytes(change(load_manifest(directory)).to_bytes())


def refresh(split: Path) -> None:
    """Make the manifest of stage 1 match its files again, as a forger would."""

    def change(manifest: Manifest) -> Manifest:
        files, tensors = [], []
        for file in manifest.weight_files:
            path = stage(split) / file.name
            header, raw = read_header(path), path.read_bytes()
            head = digest_bytes(raw[: header.header_bytes])
            files.append(msgspec.structs.replace(file, header_blake3=head, nbytes=len(raw)))
            for tensor in header.tensors:
                entry = next(entry for entry in manifest.tensors if entry.file == file.name)
                tensors.append(
                    msgspec.structs.replace(
                        entry, name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, nbytes=tensor.nbytes,
                        blake3=digest_bytes(raw[tensor.offset : tensor.offset + tensor.nbytes]),
                    )
                )  # fmt: skip
        return msgspec.structs.replace(manifest, weight_files=tuple(files), tensors=tuple(tensors))

    rewrite(stage(split), change)


def without(directory: Path, name: str) -> None:
    rewrite(
        directory,
        lambda manifest: msgspec.structs.replace(
            manifest, tensors=tuple(entry for entry in manifest.tensors if entry.name != name)
        ),
    )


def drop_everywhere(split: Path) -> None:
    kinds = {t.name: (t.dtype, t.shape) for t in read_header(weights(split)).tensors if t.name != UP}
    write_safetensors(weights(split), kinds, {"format": "pt"})
    refresh(split)


def move(split: Path, name: str, to: int) -> None:
    moved = next(entry for entry in load_manifest(stage(split)).tensors if entry.name == name)
    without(stage(split), name)
    rewrite(stage(split, to), lambda m: msgspec.structs.replace(m, tensors=(*m.tensors, moved)))


def copy_into(split: Path, name: str, to: int) -> None:
    copied = next(entry for entry in load_manifest(stage(split)).tensors if entry.name == name)
    rewrite(stage(split, to), lambda m: msgspec.structs.replace(m, tensors=(*m.tensors, copied)))


def index(split: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = stage(split) / INDEX_NAME
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


def replace_stage(split: Path, seed: bytes, ranges: list[str]) -> None:
    """Replace stage 1 by that of a split of another model or with other ranges."""
    source = model_at(split.parent / "other")
    for path in source.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        start = read_header(path).header_bytes
        raw[start:] = bytes(byte ^ seed[0] for byte in raw[start:])
        path.write_bytes(raw)
    split_checkpoint(source, split.parent / "other-split", ranges=ranges)
    shutil.rmtree(stage(split))
    shutil.copytree(split.parent / "other-split" / "stage_1", stage(split))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def forge_config(split: Path) -> None:
    for directory in split.iterdir():
        edit(directory / "config.json", rope_theta=5.0)
        path = directory / "config.json"
        forged = SmallFile("config.json", path.stat().st_size, digest_file(path))
        rewrite(
            directory,
            lambda manifest, forged=forged: msgspec.structs.replace(
                manifest, small_files=tuple(forged if f.path == forged.path else f for f in manifest.small_files)
            ),
        )


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def model_at(directory: Path) -> Path:
    """Write a model with one file per layer, so that a stage has several files."""
    kinds = llama(LAYERS, tied=True)
    write_checkpoint(directory, kinds, llama_config(LAYERS, tie_word_embeddings=True))
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for layer in (None, *range(LAYERS)):
        tensors = {name: kind for name, kind in kinds.items() if layer_of(name) == layer}
        file = f"model-{0 if layer is None else layer + 1:05}.safetensors"
        write_safetensors(directory / file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def in_model(split: Path) -> Path:
    return split.parent / "model"


def file_with(directory: Path, tensor: str) -> Path:
    return next(p for p in directory.glob("*.safetensors") if tensor in header_of(p))


def unhashed(split: Path) -> None:
    shutil.rmtree(split)
    split_checkpoint(in_model(split), split, 3, options=CopyOptions(Mode.COPY, hashed=False))
    flip(file_with(stage(split), UP), UP)
