# SPDX-License-Identifier: Apache-2.0
"""The calls of the embedded engine's head to its stages, and their payloads.

`LOAD_MODEL` has no payload and every stage answers it. `STEP` has a `Step`, and only the last stage answers it, with
the `Choice` that it made. `FREE` has the number of a sequence, and the head does not wait for an answer.
"""

from __future__ import annotations

import msgspec
import torch
import transformers

from zpptool.config.embedded_flags import allowed_media_domains
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import common_facts
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.sampling import Choice, SamplingParams
from zpptool.errors import usage_error

STEP, FREE = "step", "free"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of one sequence.

    Attributes:
        sequence: the sequence's number, assigned by the head.
        token_ids: the whole prompt in the first step, then the token that was chosen last.
        sampling: how the sequence's tokens are chosen; in the first step only.
        media: what the processor made of the prompt's images, as `encode_media` has it; in the first step only.
    """

    sequence: int
    token_ids: list[int]
    sampling: SamplingParams | None
    media: list[bytes] = []


_encoder = msgspec.msgpack.Encoder()
_step_decoder = msgspec.msgpack.Decoder(Step)
_number_decoder = msgspec.msgpack.Decoder(int)
_choice_decoder = msgspec.msgpack.Decoder(Choice)


def encode_step(step: Step) -> bytes:
    """A step as a payload."""
    return _encoder.encode(step)


def decode_step(payload: bytes) -> Step:
    """The step in a payload.

    Raises:
        msgspec.DecodeError: the payload is not a step.
    """
    return _step_decoder.decode(payload)


def encode_number(number: int) -> bytes:
    """A sequence's number as a payload."""
    return _encoder.encode(number)


def decode_number(payload: bytes) -> int:
    """The number in a payload.

    Raises:
        msgspec.DecodeError: the payload is not a number.
    """
    return _number_decoder.decode(payload)


def encode_choice(choice: Choice) -> bytes:
    """A choice as a payload."""
    return _encoder.encode(choice)


def decode_choice(payload: bytes) -> Choice:
    """The choice in a payload.

    Raises:
        msgspec.DecodeError: the payload is not a choice.
    """
    return _choice_decoder.decode(payload)


def check_arguments(spec: StageSpec) -> None:
    """Refuse arguments that this engine does not support.

    Raises:
        ZppError: (USAGE) there are engine arguments that are not known, or torch cannot compute in the dtype or on
            the device.
    """
    allowed_media_domains(spec.engine_args)
    named = getattr(torch, spec.dtype, None)
    if spec.dtype != "auto" and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise usage_error(f"{spec.dtype} is not a dtype to compute in", "Use bfloat16, float16, float32 or auto.")
    problem = _why_not_on(device_of(spec))
    if problem:
        raise usage_error(f"torch cannot compute on {spec.device}: {problem}", "Use cpu or auto.")


def _why_not_on(name: str) -> str:
    """Why torch cannot compute on a device; empty if it can. Nothing is allocated there: the head asks too, and a CUDA
    context would take some hundred MiB of a GPU that the head does not use."""
    try:
        device = torch.device(name)
        module = torch.get_device_module(device)
    except RuntimeError as cause:
        return str(cause).splitlines()[0]
    if device.type == "cpu":
        return ""
    if not module.is_available():
        return f"this torch ({torch.__version__}) finds no such device on this machine"
    count = module.device_count()
    return f"this process sees {count} of them" if (device.index or 0) >= count else ""


def agreed_facts(spec: StageSpec) -> dict[str, str]:
    """The values that this process uses, by name. The head refuses a pipeline in which they differ.

    Raises:
        ZppError: (INVALID) the directory holds no model that transformers knows.
    """
    dtype = load_config(spec.directory).dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    return {
        **common_facts(spec),
        "engine": f"transformers {transformers.__version__}",
        "dtype": str(dtype or spec.dtype).removeprefix("torch."),
    }


def device_of(spec: StageSpec) -> str:
    """The torch device to compute on; `auto` is a GPU if the machine has one."""
    if spec.device != "auto":
        return spec.device
    return "cuda" if torch.cuda.is_available() else "cpu"
