# SPDX-License-Identifier: Apache-2.0
"""The classes whose objects vLLM's scheduler, executor and workers pass to each other."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Iterator
from types import ModuleType

from vllm.compilation.cuda_graph import CUDAGraphStat
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)
from vllm.pooling_params import LateInteractionParams, PoolingParams
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
    StructuredOutputsParams,
)
from vllm.v1 import kv_cache_interface
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched import output as scheduler_output
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    DraftTokenIds,
    KVConnectorOutput,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
    SamplingMaskLists,
)
from vllm.v1.worker.worker_base import CompilationTimes

__all__ = [
    "EMPTY_MODEL_RUNNER_OUTPUT",
    "CachedRequestData",
    "GrammarOutput",
    "ModelRunnerOutput",
    "MultiModalFieldElem",
    "MultiModalKwargsItem",
    "NewRequestData",
    "SamplingParams",
    "SchedulerOutput",
    "control_classes",
]


def control_classes() -> Iterator[type]:
    """Every such class, and the enums that their fields hold."""
    yield from _data_classes(scheduler_output)
    yield from _data_classes(kv_cache_interface)
    yield from (
        ModelRunnerOutput, LogprobsLists, LogprobsTensors, SamplingMaskLists, KVConnectorOutput, DraftTokenIds,
        CUDAGraphStat, CompilationTimes, KVCacheBlockCopy, MultipleOf, MambaAttentionBackendEnum,
        SamplingParams, SamplingType, StructuredOutputsParams, RepetitionDetectionParams, RequestOutputKind,
        PoolingParams, LateInteractionParams, LoRARequest,
        MultiModalFeatureSpec, MultiModalKwargsItem, MultiModalFieldElem, PlaceholderRange,
        MultiModalBatchedField, MultiModalFlatField, MultiModalSharedField,
    )  # fmt: skip


def _data_classes(module: ModuleType) -> Iterator[type]:
    for _name, kind in inspect.getmembers(module, inspect.isclass):
        own = kind.__module__ == module.__name__
        if own and (dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum)):
            yield kind
