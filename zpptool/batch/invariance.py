# SPDX-License-Identifier: Apache-2.0
"""Answers that are the same, bit by bit, however many stages there are and whatever else is computed (`--invariant`).

In bf16 the last bit of a sequence depends on what else is in its batch, and how sequences are batched depends on
stages, order and time. So each step holds one sequence: the shape of every batch then follows from the line alone.
Cutting a model by layers splits no sum, so the number of stages makes no difference. The embedded engine always
computes so; vLLM does with the scheduler of comparisons, without its prefix cache (what it has cached would not be
computed again), and without recovery of a lost stage (which computes prompt and answer together again): its requests
begin anew instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zpptool.batch.flow import EngineLoad
from zpptool.batch.journal import SUFFIX
from zpptool.config.engine_arguments import has_option
from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.errors import ZppError, usage_error

IN_FLIGHT_A_STAGE = 2
"""Lines in flight for each stage: one is computed while the next one travels."""
NO_PREFIX_CACHE = "--no-enable-prefix-caching"
PREEMPTED_NAME = "preempted"
"""The file in a journal's directory that notes a preemption."""
_DECIDED = ("--scheduler-cls", "--enable-prefix-caching", NO_PREFIX_CACHE)
_EMBEDDED_OWNER = '"owned_by":"zpptool"'


def invariant_arguments(engine: Engine, given: Sequence[str]) -> tuple[str, ...]:
    """The engine arguments that make answers invariant.

    Args:
        engine: what computes.
        given: the user's engine arguments.

    Raises:
        ZppError: (USAGE) the user's arguments contradict them.
    """
    for option in _DECIDED:
        if has_option(given, option):
            raise usage_error(f"--invariant decides {option}", "Leave one of the two out.")
    if engine is Engine.TRANSFORMERS:
        return ()
    return (*ENGINES[engine].single_sequence_args, NO_PREFIX_CACHE)


def recovers(engine: Engine) -> bool:
    """Whether answers are the same, bit by bit, after the recovery of a lost stage."""
    return engine is Engine.TRANSFORMERS


def refuse_other_server(url: str, identity: Mapping[str, str]) -> None:
    """Refuse a running pipeline that may batch sequences.

    Args:
        url: of the pipeline.
        identity: of its model (`batch.run.model_identity`).

    Raises:
        ZppError: (USAGE) it is not known to compute one sequence a step.
    """
    if _EMBEDDED_OWNER not in identity.get("served model", ""):
        raise usage_error(
            f"--invariant: the engine at {url} batches sequences as it likes",
            "Name a model instead of --url, and run-batch starts a pipeline that computes one sequence a step.",
        )


class PreemptionWatch:
    """Notices that a sequence was preempted: its answer is computed in another shape then, and may differ.

    Args:
        journal: the directory of the run's journal, where it is noted.
        first: the engine's load before the first line; None where the engine reports none, and preempts nothing.
    """

    def __init__(self, journal: Path, first: EngineLoad | None) -> None:
        self._journal = journal
        self._seen = first.preemptions if first is not None else 0.0

    def see(self, load: EngineLoad) -> None:
        """Look at the engine's load. A smaller count is that of an engine that was started again.

        Raises:
            ZppError: (FAILURE) there were preemptions.
        """
        if load.preemptions > self._seen:
            (self._journal / PREEMPTED_NAME).touch()
            raise _preemption_error(self._journal)
        self._seen = load.preemptions


def refuse_preempted(journal: Path) -> None:
    """Refuse to continue a run in which a sequence was preempted.

    Args:
        journal: the directory of the run's journal.

    Raises:
        ZppError: (FAILURE) there was one.
    """
    if (journal / PREEMPTED_NAME).exists():
        raise _preemption_error(journal)


def _preemption_error(journal: Path) -> ZppError:
    return ZppError(
        f"{journal.name.removesuffix(SUFFIX)}: the KV cache was too small, so --invariant does not hold for every line",
        "Give the engine more cache, or have fewer lines in flight (--max-in-flight), and --restart.",
    )
