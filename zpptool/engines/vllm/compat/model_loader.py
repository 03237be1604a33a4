# SPDX-License-Identifier: Apache-2.0
"""vLLM's model loaders, and vLLM's own partition of a model's layers.

vLLM imports the plugin in every process, and the plugin imports this module, so nothing heavy may be imported here.
"""

from __future__ import annotations

from vllm.distributed.parallel_state import get_pp_group
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

__all__ = ["DefaultModelLoader", "get_pp_group", "get_pp_indices", "register_model_loader"]
