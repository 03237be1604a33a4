# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler and its requests."""

from __future__ import annotations

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

__all__ = ["EngineCoreOutputs", "Request", "RequestStatus", "Scheduler"]
