# SPDX-License-Identifier: Apache-2.0
"""How the processes of a stage run: device, time limits, recovery, tracing, and the safety and compression of links.

One object is passed from the command line (or `zpptool.LLM`) through the resolution of a stage to its `StageSpec`, so
that a new option is added here and where it is used, and nowhere in between.
"""

from __future__ import annotations

import msgspec

from zpptool.errors import usage_error
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.witness.options import WitnessOptions


class RuntimeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a stage runs, as opposed to what it computes and where its neighbours are.

    Attributes:
        device: a torch device, or `auto`.
        start_timeout_s: seconds to wait for the neighbours, for the head and for the weights to load.
        step_timeout_s: seconds that one step may take.
        beat_timeout_s: seconds without progress at a step after which a stage counts as hanging.
        recovery_deadline_s: seconds that a lost stage may take to come back; 0 where a loss ends the pipeline.
        trace: path of the timeline to write; empty for none.
        keys: path of the stage's key file; empty for none. Only the path: other users can read a command line.
        insecure: whether links that other machines can reach may go without keys.
        wire_codec: whether the stage's sending link compresses.
        witness: what is recorded of the computation.
    """

    device: str = "auto"
    start_timeout_s: float = 600.0
    step_timeout_s: float = 300.0
    beat_timeout_s: float = 60.0
    recovery_deadline_s: float = 0.0
    trace: str = ""
    keys: str = ""
    insecure: bool = False
    wire_codec: WireCodec = WireCodec.NONE
    witness: WitnessOptions = WitnessOptions()


def refuse_idle_standby(standby: int, recovery_deadline_s: float) -> None:
    """Refuse spare processes in a pipeline that does not replace a lost stage.

    Args:
        standby: the number of spare processes.
        recovery_deadline_s: as in `RuntimeOptions`.

    Raises:
        ZppError: (USAGE) there are spare processes, and the loss of a stage ends the pipeline.
    """
    if standby and not recovery_deadline_s:
        raise usage_error(
            "--standby is for a pipeline that survives the loss of a stage, and this one does not",
            "Leave out --recovery-deadline 0 and --headless, or --standby.",
        )
