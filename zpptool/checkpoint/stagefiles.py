# SPDX-License-Identifier: Apache-2.0
"""Check that the files of one stage directory match its manifest, byte for byte.

Tensors, the headers of weight files, and all other files are compared with their digests, and no file may be present
that the manifest does not name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zpptool.checkpoint.digest import digest_bytes, digest_file
from zpptool.checkpoint.faults import SplitFault, SplitFaultCode
from zpptool.checkpoint.file_copy import Advance
from zpptool.checkpoint.header import Header, HeaderFault, read_header
from zpptool.checkpoint.index import INDEX_NAME, MAX_INDEX_BYTES
from zpptool.checkpoint.manifest import Manifest, WeightFile
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.streaming import hash_tensors
from zpptool.document import read_json
from zpptool.errors import ZppError


@dataclass
class WeightCheck:
    """The result of checking one weight file: its faults, and the digests of the tensors that could be read."""

    faults: list[SplitFault] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def check_small_files(directory: Path, manifest: Manifest) -> list[SplitFault]:
    """Check that all files but the weights are present and unchanged, and that there are no unknown files."""
    present, faults = _present_files(directory, manifest)
    named = {STAGE_FILE, *(file.path for file in manifest.small_files), *(file.name for file in manifest.weight_files)}
    for name in sorted(present - named):
        faults.append(_fault(manifest, f"{name} is not in the manifest: it was added after the split"))
    weights = {file.name for file in manifest.weight_files}
    for entry in manifest.tensors:
        if entry.file not in weights:
            message = f"tensor {entry.name} is in {entry.file!r}, which is not one of its weight files"
            faults.append(_fault(manifest, message, entry.name))
    for file in manifest.small_files:
        path = directory / file.path
        try:
            if not path.is_file():
                faults.append(_fault(manifest, f"{file.path} {'is not a file' if path.exists() else 'is missing'}"))
            elif path.stat().st_size != file.nbytes or digest_file(path) != file.blake3:
                index_faults = _check_weight_map(path, manifest) if file.path == INDEX_NAME else []
                faults += index_faults or [_fault(manifest, f"{file.path} was changed after the split")]
        except OSError as cause:
            faults.append(_fault(manifest, f"{file.path} cannot be read: {cause.strerror}"))
    return faults


def check_weights(
    directory: Path, manifest: Manifest, file: WeightFile, stop: threading.Event, advance: Advance, *, hash_all: bool
) -> WeightCheck:
    """Check one weight file: its header, the list of its tensors, and every tensor's bytes.

    Args:
        directory: the stage directory.
        manifest: its manifest.
        file: the weight file.
        stop: cancels the check when set.
        advance: called with the number of bytes just read.
        hash_all: also hash tensors without a digest in the manifest, so that they can be compared with the source.

    Raises:
        Stopped: `stop` was set.
    """
    check = WeightCheck()
    path = directory / file.name
    try:
        header = read_header(path)
        check.faults += _check_header(manifest, file, header)
        hashed = {entry.name for entry in manifest.tensors if entry.blake3}
        check.hashes = hash_tensors([t for t in header.tensors if hash_all or t.name in hashed], stop, advance)
    except HeaderFault as fault:
        message = fault.message.replace(f"{directory}{os.sep}", "")
        check.faults.append(_fault(manifest, message, fault.tensor))
        return check
    except OSError as cause:
        check.faults.append(_fault(manifest, f"{file.name} cannot be read: {cause.strerror}"))
        return check
    for entry in manifest.tensors:
        if entry.file == file.name and entry.blake3 and check.hashes.get(entry.name, entry.blake3) != entry.blake3:
            message = f"stage {manifest.stage}: the bytes of tensor {entry.name} in {file.name} were changed"
            check.faults.append(SplitFault(SplitFaultCode.BYTES, message, manifest.stage, entry.name))
    return check


def _check_weight_map(path: Path, manifest: Manifest) -> list[SplitFault]:
    """Return the faults of a changed index: tensors it omits, invents, or maps to the wrong file."""
    try:
        weight_map = dict(read_json(path, MAX_INDEX_BYTES, "index of a checkpoint")["weight_map"].items())
    except (ZppError, KeyError, TypeError, AttributeError):
        return []
    homes = {entry.name: entry.file for entry in manifest.tensors}
    faults = []
    for name, file in weight_map.items():
        if name not in homes:
            faults.append(_fault(manifest, f"{path.name} names tensor {name}, which the stage does not hold", name))
        elif file != homes[name]:
            faults.append(_fault(manifest, f"{path.name} maps tensor {name} to {file}; it is in {homes[name]}", name))
    for name in sorted(homes.keys() - weight_map.keys()):
        faults.append(_fault(manifest, f"{path.name} does not name tensor {name}", name))
    return faults


def _check_header(manifest: Manifest, file: WeightFile, header: Header) -> Iterable[SplitFault]:
    wanted = {entry.name: entry for entry in manifest.tensors if entry.file == file.name}
    held = {tensor.name: tensor for tensor in header.tensors}
    stage, faults = manifest.stage, []
    for name in wanted.keys() - held.keys():
        message = f"stage {stage}: {file.name} lacks tensor {name}"
        faults.append(SplitFault(SplitFaultCode.MISSING, message, stage, name))
    for name in held.keys() - wanted.keys():
        message = f"stage {stage}: {file.name} holds tensor {name}, which is not in the manifest"
        faults.append(SplitFault(SplitFaultCode.EXTRA, message, stage, name))
    for name in wanted.keys() & held.keys():
        entry, tensor = wanted[name], held[name]
        if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            kinds = f"{tensor.dtype} {list(tensor.shape)}, not {entry.dtype} {list(entry.shape)}"
            message = f"stage {stage}: tensor {name} in {file.name} is {kinds}"
            faults.append(SplitFault(SplitFaultCode.TENSOR, message, stage, name))
    with header.file.open("rb") as stream:
        head = stream.read(header.header_bytes)
    if not faults and digest_bytes(head) != file.header_blake3:
        faults.append(_fault(manifest, f"the header of {file.name} was changed after the split"))
    return sorted(faults, key=lambda fault: fault.message)


def _present_files(directory: Path, manifest: Manifest) -> tuple[set[str], list[SplitFault]]:
    """Return the files in a stage directory, and a fault for each link that leads out and each unreadable folder.

    Hidden files and Python bytecode are ignored: other programs create them as a side effect.
    """
    found: set[str] = set()
    faults: list[SplitFault] = []

    def on_error(cause: OSError) -> None:
        faults.append(_fault(manifest, f"{cause.filename} cannot be read: {cause.strerror}"))

    inside = os.path.realpath(directory) + os.sep
    for folder, subfolders, names in os.walk(directory, onerror=on_error):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__pycache__"]
        for path in (Path(folder, name) for name in sorted([*subfolders, *names])):
            relative = path.relative_to(directory).as_posix()
            leads_to = os.path.realpath(path)
            if path.is_symlink() and not leads_to.startswith(inside):
                faults.append(
                    _fault(manifest, f"{relative} is a symbolic link out of the stage directory, to {leads_to}")
                )
        found |= {Path(folder, name).relative_to(directory).as_posix() for name in names if not name.startswith(".")}
    return found, faults


def _fault(manifest: Manifest, message: str, tensor: str | None = None) -> SplitFault:
    return SplitFault(SplitFaultCode.FILE, f"stage {manifest.stage}: {message}", manifest.stage, tensor)
