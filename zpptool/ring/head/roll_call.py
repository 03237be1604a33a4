# SPDX-License-Identifier: Apache-2.0
"""Whether the stages of a roll call make one pipeline: a pure function, called before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpptool.partition import LayerRange, check_ranges
from zpptool.ring.messages import FITS_ALL, MODEL_SOURCE, StageFacts


def disagreements(
    num_stages: int, num_layers: int, agreed: Mapping[str, str], stages: Sequence[StageFacts]
) -> list[str]:
    """Every reason why the stages that answered the roll call cannot run together; empty if they can.

    Args:
        num_stages: how many stages the head was configured with.
        num_layers: how many layers the model has.
        agreed: the head's values of what has to be the same everywhere, by name.
        stages: what the stages reported about themselves, in the order in which the roll call reached them.
    """
    answered = [facts.stage for facts in stages]
    if answered != list(range(num_stages)):
        return [
            f"the roll call met {_listed(answered)}, but the ring of {num_stages} stages is 0 to {num_stages - 1}:"
            " a stage connects to the wrong one, or two stages were given the same place"
        ]
    _ranges, faults = check_ranges([str(LayerRange(*facts.layers)) for facts in stages], num_layers, num_stages)
    reasons = [fault.message for fault in faults]
    for facts in stages:
        if facts.num_stages != num_stages:
            reasons.append(f"{_named(facts)} counts {facts.num_stages} stages, the head {num_stages}")
        for name in sorted((agreed.keys() | facts.agreed.keys()) - {MODEL_SOURCE}):
            ours, theirs = agreed.get(name, "nothing"), facts.agreed.get(name, "nothing")
            if ours != theirs and FITS_ALL not in (ours, theirs):
                reasons.append(f"{_named(facts)} has {name} {theirs}, the head has {ours}")
    return reasons + _source_faults(stages)


def _source_faults(stages: Sequence[StageFacts]) -> list[str]:
    """Stages that know where their model comes from, and know different places or commits. A path has no such name."""
    known = [facts for facts in stages if MODEL_SOURCE in facts.agreed]
    return [
        f"{_named(facts)} has the model {facts.agreed[MODEL_SOURCE]}, {_named(known[0])} has"
        f" {known[0].agreed[MODEL_SOURCE]}: name one commit on every stage, with --revision or a plan"
        for facts in known[1:]
        if facts.agreed[MODEL_SOURCE] != known[0].agreed[MODEL_SOURCE]
    ]


def _named(facts: StageFacts) -> str:
    return f"stage {facts.stage} ({facts.host}, pid {facts.pid})"


def _listed(stages: Sequence[int]) -> str:
    return "no stage" if not stages else "stages " + ", ".join(map(str, stages))
