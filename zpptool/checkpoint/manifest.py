# SPDX-License-Identifier: Apache-2.0
"""The manifest of a stage directory, `zpp-stage.json`: what the stage holds and which model it belongs to.

A manifest is written once, in one canonical form, and contains its own digest: any changed byte is detected when it is
loaded.
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
        blake3: digest of the tensor's bytes; empty if the split was made with --no-hash.
        file: name of its weight file.
        source_offset: offset of its first byte in the source file, in bytes.
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
        header_blake3: digest of the bytes before its tensor data.
        source: path of the source file that its tensors come from, relative to the checkpoint.
        source_header_blake3: digest of the bytes before the tensor data of the source file.
        metadata: the free-form `__metadata__` of both files.
    """

    name: str
    nbytes: Count
    header_blake3: str
    source: str
    source_header_blake3: str
    metadata: dict[str, str]


class SmallFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One small file of the stage; `path` is relative to the stage directory."""

    path: str
    nbytes: Count
    blake3: str


class DroppedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the model that no stage holds."""

    name: str
    dtype: str
    shape: tuple[Count, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The content of one stage directory.

    Attributes:
        schema_version: version of the manifest format.
        zpptool_version: the version that wrote the manifest.
        digest: digest of this file, computed with this field empty.
        source_digest: digest of the content of all tensors of the model; empty if not all of it was read.
        sample_digest: digest of a few bytes of some tensors of the model, the same for all stages (see `sample`).
        source_index: the `metadata` of the source's index; None if the source has no index.
        model_digest: digest of the model's config and tensor list; the same for the source and all its stages.
        tensors_digest: digest of the tensor list alone.
        num_layers: number of decoder layers of the model.
        num_stages: number of stages of the split.
        stage: number of this stage.
        partition: the layer ranges of all stages.
        layer_prefix: the part of a tensor name before the layer number.
        tensors: the tensors of this stage, ordered by weight file and by offset in it.
        shared: tensors of this stage that other stages hold too: name to reason.
        dropped: tensors of the source that no stage holds, and dropped second copies: name to reason.
        dropped_tensors: the dropped tensors that belong to the model's tensor list.
        weight_files: the weight files of this stage.
        small_files: the small files of this stage, including the index of its weight files.
        placements: where the user placed tensors: patterns, and `first`, `last`, `all` or a stage's number.
        left_out: files and links of the source that no stage holds: path to reason.
        source: where the tensors came from, for example `hf://org/name@commit`; unset if it was a directory.
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
    placements: tuple[tuple[str, str], ...] = ()
    left_out: dict[str, str] = {}
    source: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def origin(self) -> str:
        """`source`, or empty text if it is unset."""
        return self.source if isinstance(self.source, str) else ""

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
        """Whether the manifest has a digest of every tensor's bytes."""
        return all(tensor.blake3 for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Total size of the stage's tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_bytes(self) -> bytes:
        """Return the canonical serialised form of this manifest, with its digest filled in."""
        blank = _encode(msgspec.structs.replace(self, digest=""))
        return _encode(msgspec.structs.replace(self, digest=digest_bytes(blank)))


def is_stage_directory(directory: Path) -> bool:
    """Return whether `directory` is one stage of a split."""
    return (Path(directory) / STAGE_FILE).is_file()


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a stage directory.

    Raises:
        ZppError: (INVALID) it does not exist, was changed after it was written, or has an unsupported version.
    """
    path = Path(directory) / STAGE_FILE
    try:
        raw = read_regular(path, MAX_MANIFEST_BYTES, "manifest")
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
        if version != MANIFEST_VERSION:
            raise invalid_error(
                f"{path} has schema version {version}, this zpptool reads version {MANIFEST_VERSION}",
                "split the model again, or use the zpptool version that wrote it",
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
        raise invalid_error(f"{path} claims to be stage {manifest.stage} of {manifest.num_stages}, which is impossible")
    return manifest


def _check_names(path: Path, manifest: Manifest) -> None:
    """Refuse file names that would make `join` read or write outside its own directories."""
    names = [file.name for file in manifest.weight_files]
    sources = {file.source for file in manifest.weight_files}
    small = [file.path for file in manifest.small_files]
    outside = [name for name in names if not is_plain_name(name)]
    outside += [name for name in (*sorted(sources), *small) if not is_inner_path(name)]
    if outside:
        raise invalid_error(
            f"{path} names the file {outside[0]!r}, which is outside the stage directory or not a valid file name",
            "Do not use this split; split the model again.",
        )
    twice = named_twice([STAGE_FILE, *names, *small]) or named_twice([STAGE_FILE, *sorted(sources), *small])
    if twice is not None:
        raise invalid_error(f"{path} names the file {twice} twice", "split the model again")


class _Versioned(msgspec.Struct):
    schema_version: int


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
