# SPDX-License-Identifier: Apache-2.0
"""The manifest of a stage directory, `zpp-stage.json`: what the stage holds and of which model it is a part.

A manifest is written once, in one canonical form, and carries its own digest: a changed byte anywhere in it is seen
when it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.document import Count
from zpptool.errors import invalid_error
from zpptool.file_names import is_inner_path, is_plain_name, named_twice
from zpptool.partition import LayerRange, Partition
from zpptool.regular_file import read_regular

MANIFEST_VERSION = 2
MAX_MANIFEST_BYTES = 512 * 1024 * 1024


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the stage.

    Attributes:
        blake3: the digest of its bytes; empty where the split was told not to hash.
        file: its weight file.
        source_offset: of its first byte in the source file that the weight file was made from.
    """

    name: str
    dtype: str
    shape: tuple[Count, ...]
    nbytes: Count
    blake3: str
    file: str
    source_offset: Count


class WeightFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight file.

    Attributes:
        header_blake3: the digest of all that comes before its tensor data.
        source: the name of the source file that its tensors are from.
        source_header_blake3: the digest of all that came before the tensor data there.
        metadata: of both.
    """

    name: str
    nbytes: Count
    header_blake3: str
    source: str
    source_header_blake3: str
    metadata: dict[str, str]


class SmallFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file that is carried whole; `path` is relative to the stage directory."""

    path: str
    nbytes: Count
    blake3: str


class DroppedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the model that no stage holds."""

    name: str
    dtype: str
    shape: tuple[Count, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one stage directory holds.

    Attributes:
        schema_version: of this file.
        zpptool_version: that wrote it.
        digest: of this file, taken with this field empty.
        source_digest: of the content of all tensors of the model; empty where not all of it was read.
        sample_digest: of a few bytes of some tensors of the model, the same for all its stages (see `sample`).
        source_index: the `metadata` of the source's index; None where the source has no index.
        model_digest: of the model's config and tensor list; the same for the source and all its stages.
        tensors_digest: the part of it that stands for the tensor list.
        num_layers: of the model.
        num_stages: of the split.
        stage: the number of this one.
        partition: the layer ranges of all stages.
        layer_prefix: what stands before a layer's number in tensor names.
        tensors: of this stage, in the order of weight files and of bytes in them.
        shared: of these, those that other stages hold too: name to reason.
        dropped: what no stage holds of the source, or not a second time: name to reason.
        dropped_tensors: those of them that belong to the model's tensor list.
        weight_files: of this stage.
        small_files: of this stage, the index of its weight files among them.
    """

    schema_version: int
    zpptool_version: str
    digest: str
    source_digest: str
    sample_digest: str
    source_index: dict[str, Any] | None
    model_digest: str
    tensors_digest: str
    num_layers: Count
    num_stages: Count
    stage: Count
    partition: tuple[tuple[Count, Count], ...]
    layer_prefix: str
    tensors: tuple[TensorEntry, ...]
    shared: dict[str, str]
    dropped: dict[str, str]
    dropped_tensors: tuple[DroppedTensor, ...]
    weight_files: tuple[WeightFile, ...]
    small_files: tuple[SmallFile, ...]

    @property
    def ranges(self) -> Partition:
        """The layer ranges of all stages."""
        return tuple(LayerRange(start, end) for start, end in self.partition)

    @property
    def layers(self) -> LayerRange:
        """The layers of this stage."""
        return self.ranges[self.stage]

    @property
    def hashed(self) -> bool:
        """Whether every tensor's bytes can be held against their digest."""
        return all(tensor.blake3 for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the stage's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_bytes(self) -> bytes:
        """The one form in which this manifest is written, its digest set."""
        blank = _encode(msgspec.structs.replace(self, digest=""))
        return _encode(msgspec.structs.replace(self, digest=digest_bytes(blank)))


def is_stage_directory(directory: Path) -> bool:
    """Whether `directory` is one stage of a split."""
    return (Path(directory) / STAGE_FILE).is_file()


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a stage directory.

    Raises:
        ZppError: (INVALID) there is none, or it is not as it was written, or of a version this zpptool does not know.
    """
    path = Path(directory) / STAGE_FILE
    try:
        raw = read_regular(path, MAX_MANIFEST_BYTES, "manifest")
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
        if version != MANIFEST_VERSION:
            raise invalid_error(
                f"{path} has schema version {version}, this zpptool reads version {MANIFEST_VERSION}",
                "split the model again, or use the zpptool that wrote it",
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except FileNotFoundError as cause:
        raise invalid_error(f"{directory} is not a stage directory: it has no {STAGE_FILE}") from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise invalid_error(f"{path} cannot be read: {cause}", "split the model again") from cause
    if manifest.to_bytes() != raw:
        raise invalid_error(f"{path} was changed after the split", "split the model again")
    _check_names(path, manifest)
    if not 0 <= manifest.stage < manifest.num_stages == len(manifest.partition):
        raise invalid_error(f"{path} is of stage {manifest.stage} of {manifest.num_stages}, which cannot be")
    return manifest


def _check_names(path: Path, manifest: Manifest) -> None:
    """Refuse files that `join` would look for, or write, elsewhere than in its own directories."""
    names = [file.name for file in manifest.weight_files]
    sources = {file.source for file in manifest.weight_files}
    small = [file.path for file in manifest.small_files]
    outside = [name for name in (*names, *sorted(sources)) if not is_plain_name(name)]
    outside += [name for name in small if not is_inner_path(name)]
    if outside:
        raise invalid_error(
            f"{path} names the file {outside[0]!r}, which lies outside the stage directory or is no file's name",
            "Do not use this split; make it again from the model.",
        )
    twice = named_twice([STAGE_FILE, *names, *small]) or named_twice([STAGE_FILE, *sorted(sources), *small])
    if twice is not None:
        raise invalid_error(f"{path} names the file {twice} twice", "split the model again")


class _Versioned(msgspec.Struct):
    schema_version: int


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
