# SPDX-License-Identifier: Apache-2.0
"""A part of a model on vLLM: the rank of a stage as a pipeline runs it, with steps that are made here."""

from __future__ import annotations

import time

import torch

from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.memory_budget import stage_bytes
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.device_name import device_name
from zpptool.engines.peak_memory import PeakMemory, synchronize
from zpptool.engines.read_rate import read_rate
from zpptool.engines.vllm.compat import kv_cache, platform
from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.compat.model_runner import module_paths
from zpptool.engines.vllm.core.kv_layout import cache_bytes, common_layouts, layer_number
from zpptool.engines.vllm.measured.cache_report import cache_costs, cache_layout
from zpptool.engines.vllm.measured.solo_group import SoloGroup
from zpptool.engines.vllm.measured.steps import SPARE_TOKENS, Steps, blocks_needed
from zpptool.engines.vllm.measured.weightless import leave_out_weights
from zpptool.engines.vllm.stage.model_rank import StageRank
from zpptool.errors import ZppError
from zpptool.planner.device_profile import CacheCosts
from zpptool.process.measuring import Limits, Loaded, Phase, Point, Times


class VllmPart:
    """A part of a model on vLLM, or all of it without weights.

    Args:
        spec: the stage. With one stage the model is built without weights, and only its cache can be asked for.
        store: URL of a file through which torch.distributed of the ranks find each other.
        rank: the tensor-parallel rank. All ranks have to be asked the same.
    """

    def __init__(self, spec: StageSpec, store: str, rank: int = 0) -> None:
        self._spec = spec
        self._rank = StageRank(spec, rank, store)
        self._group = SoloGroup(spec, rank)
        self._device = torch.device(platform.device_type())
        self._steps: Steps | None = None
        self._cache_bytes = 0
        self._blocks = 0
        self._block_sizes: list[int] = []

    def limits(self) -> Limits:
        """What the configuration allows."""
        scheduler, model = self._rank.config.scheduler_config, self._rank.config.model_config
        return Limits(
            scheduler.max_num_batched_tokens, scheduler.max_num_seqs, model.max_model_len, device_name(self._device)
        )

    def load(self, points: tuple[Point, ...]) -> Loaded:
        """Load the layers, allocate a cache, and compile and warm up as a stage does."""
        began = time.perf_counter()
        self._rank.load(self._group)
        synchronize(self._device)
        seconds = time.perf_counter() - began
        self._allocate_cache(points)
        self._group.prepare(self._rank.worker, self._rank.config)
        self._rank.compile_or_warm_up_model()
        read = sum(tensor.nbytes for tensor in load_plan(self._spec.directory, self._spec.stage, self._spec.ranges))
        return Loaded(read, seconds)

    def _allocate_cache(self, points: tuple[Point, ...]) -> None:
        """Allocate a cache for the largest of the steps, and for the largest step that the engine takes, as the head
        would have the stage do."""
        specs = self._specs()
        self._rank.determine_available_memory()
        groups = kv_cache.kv_cache_configs(self._rank.config, [specs], 1 << 24)[0].kv_cache_groups
        sizes = [group.kv_cache_spec.block_size for group in groups]
        largest = self._largest(self.limits().max_num_batched_tokens)
        self._blocks = blocks_needed((*points, largest), sizes, self.limits().max_model_len)
        laid = kv_cache.kv_cache_configs(self._rank.config, [specs], self._blocks)[0]
        laid.kv_cache_layout = self._rank.config.cache_config.kv_cache_layout
        self._cache_bytes = cache_bytes(laid)
        self._rank.initialize_from_config([laid] * self._spec.num_stages)
        self._block_sizes = sizes
        self._steps = Steps(sizes, self._rank.config.model_config.get_vocab_size(), self.limits().max_model_len)

    def _specs(self) -> dict[str, kv_cache.KVCacheSpec]:
        """What the layers need of the cache, after the layout is resolved as the engine core does."""
        specs = self._rank.get_kv_cache_spec()
        layouts = common_layouts([self._rank.method("get_supported_kv_cache_layouts")()])
        name = kv_cache.resolve_layout(self._rank.config, layouts, list(specs.values()))
        self._rank.method("set_kv_cache_layout")(name)
        return specs

    def time(self, point: Point, repeats: int) -> Times:
        """Do a step so many times, with new sequences for each prompt."""
        steps = self._made_steps
        longest = self.limits().max_model_len
        if blocks_needed([point], self._block_sizes, longest) > self._blocks:
            raise ZppError(f"the cache was not made for a step of {point.tokens} tokens of {point.sequences} sequences")
        forward, sampling = [], []
        if point.phase is Phase.DECODE:
            self._step(steps.begin(point, all_but=1))
        for _ in range(min(repeats, SPARE_TOKENS - 1, longest - point.context - 1)):
            if point.phase is Phase.DECODE:
                step = steps.next_token()
            else:
                step = steps.begin(point, all_but=point.tokens // point.sequences)
            seconds = self._step(step)
            forward.append(seconds[0])
            sampling.append(seconds[1])
        return Times(tuple(forward), tuple(sampling) if self._spec.is_last else ())

    def workspace(self, tokens: int) -> int:
        """Do a step of so many tokens, of as many sequences as there may be."""
        point = self._largest(tokens)
        memory = PeakMemory(self._device)
        self._step(self._made_steps.end())
        memory.reset()
        self._step(self._made_steps.begin(point, all_but=point.tokens // point.sequences))
        return max(memory.bytes() - stage_bytes(self._spec) - self._cache_bytes, 0)

    def _largest(self, tokens: int) -> Point:
        """A step of so many tokens of as many sequences as possible."""
        limits = self.limits()
        sequences = min(tokens, limits.max_num_seqs)
        each = min(tokens // sequences, limits.max_model_len - 1)
        return Point(Phase.PREFILL, each * sequences, sequences, 0)

    def read_rate(self) -> float:
        """Read the part's weights again; bytes per second."""
        return read_rate(load_plan(self._spec.directory, self._spec.stage, self._spec.ranges), self._device)

    def cache(self, layer_types: tuple[str, ...], ranks: tuple[int, ...]) -> CacheCosts:
        """The cache of the whole model."""
        if self._spec.num_stages > 1:
            raise ZppError(f"layers {self._spec.layers} are not the whole model")
        leave_out_weights(self._rank.config)
        self._rank.load(self._group)
        specs = self._specs()
        paths = module_paths(self._rank.worker, self._rank.config)
        layer_of = {name: layer_number(paths[name]) for name in specs}
        layout = cache_layout(self._rank.config, specs, layer_of, self._spec.num_layers, ranks)
        return cache_costs(layout, specs, layer_of, layer_types)

    @property
    def _made_steps(self) -> Steps:
        if self._steps is None:
            raise ZppError("the part is not loaded")
        return self._steps

    def _step(self, step: SchedulerOutput) -> tuple[float, float]:
        """Do a step; the seconds of its forward pass, and of sampling."""
        began = self._now()
        output = self._rank.execute_model(step)
        computed = self._now()
        if output is None and step.total_num_scheduled_tokens:
            self._rank.sample_tokens(None)
        return computed - began, self._now() - computed

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()
