# SPDX-License-Identifier: Apache-2.0
"""Validate a deployment's image, source and program before they are written into generated files.

All three are written where some characters have a meaning: `$` in a compose file, `%` and a line break in a unit, `:`
in a mount. Invalid values are refused here; valid ones are quoted by the writer of each format.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from zpptool.errors import usage_error
from zpptool.file_names import holds_control
from zpptool.sources.names import hub_id

LONGEST_IMAGE = 512
LONGEST_SOURCE = 4096
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/)?"  # a registry
    rf"{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""An image reference, as defined in github.com/distribution/reference."""
_PROGRAM = re.compile(r"(?:/[A-Za-z0-9._+@-]+)+")


def check_image(image: str) -> None:
    """Refuse an invalid image reference; raises ZppError (USAGE)."""
    if len(image) > LONGEST_IMAGE or not _IMAGE.fullmatch(image):
        raise usage_error(
            f"{image[:80]!r} is not a valid name of a container image", "Write REGISTRY/NAME:TAG or NAME:TAG."
        )


def check_source(source: str) -> None:
    """Refuse a source that is neither a model on the Hub nor a path; raises ZppError (USAGE).

    The writer of each format checks whether its target can read the source.
    """
    hint = "Give --model hf://org/name@revision, or the path of the checkpoint."
    if not source or len(source) > LONGEST_SOURCE or holds_control(source):
        raise usage_error(f"{source[:80]!r} is not a valid source of tensors", hint)
    if source.startswith("hf:") and (not source.startswith("hf://") or hub_id(source) is None):
        raise usage_error(f"{source!r} is not a valid name of a model on the Hub", hint)
    if ".." in PurePosixPath(source).parts:
        raise usage_error(f"{source!r} contains .., which may be a different directory on each host", hint)


def check_program(program: str) -> None:
    """Refuse a program that is not an absolute path without special characters; raises ZppError (USAGE)."""
    if not _PROGRAM.fullmatch(program) or ".." in PurePosixPath(program).parts:
        raise usage_error(
            f"{program[:80]!r} is not a valid absolute path of a program",
            "systemd requires a path that begins with /; letters, digits and . _ + @ - are allowed.",
        )
