# SPDX-License-Identifier: Apache-2.0
"""What a deployment's image, source and program may be, before they are written into files of another program's format.

All three end up where a stray sign means something: `$` in a compose file, `%` and a line break in a unit, `:` in a
mount. What cannot be a value is refused here; what can is quoted by the writer of each format.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from zpptool.checkpoint.hub import hub_id
from zpptool.errors import usage_error
from zpptool.file_names import holds_control

LONGEST_IMAGE = 512
LONGEST_SOURCE = 4096
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/)?"  # a registry
    rf"{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""An image's reference, as github.com/distribution/reference has it."""
_PROGRAM = re.compile(r"(?:/[A-Za-z0-9._+@-]+)+")


def check_image(image: str) -> None:
    """Refuse what cannot name a container image; raises ZppError (USAGE)."""
    if len(image) > LONGEST_IMAGE or not _IMAGE.fullmatch(image):
        raise usage_error(f"{image[:80]!r} cannot name a container image", "Write REGISTRY/NAME:TAG or NAME:TAG.")


def check_source(source: str) -> None:
    """Refuse a source that names no model on the Hub and is no path; raises ZppError (USAGE).

    Whether a target can read it is for the writer of that target to say.
    """
    hint = "Give --model hf://org/name@revision, or the path of the checkpoint."
    if not source or len(source) > LONGEST_SOURCE or holds_control(source):
        raise usage_error(f"{source[:80]!r} cannot be where stages get their tensors", hint)
    if source.startswith("hf:") and (not source.startswith("hf://") or hub_id(source) is None):
        raise usage_error(f"{source!r} names no model on the Hub", hint)
    if ".." in PurePosixPath(source).parts:
        raise usage_error(f"{source!r} leads upwards (..), which can mean another directory on each host", hint)


def check_program(program: str) -> None:
    """Refuse a program that systemd would not find, or would read as more than a path; raises ZppError (USAGE)."""
    if not _PROGRAM.fullmatch(program) or ".." in PurePosixPath(program).parts:
        raise usage_error(
            f"{program[:80]!r} is no absolute path of a program",
            "systemd wants one that begins with /; letters, digits and . _ + @ - are taken.",
        )
