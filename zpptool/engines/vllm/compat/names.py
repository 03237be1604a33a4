# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM that zpptool relies on and that is not vLLM's public API, as data.

Nothing here imports vLLM: a release is checked by reading its source, installed or unpacked. A test checks that
everything that `engines/vllm/` imports from vLLM is on this list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hook:
    """One name.

    Attributes:
        module: the module that defines it, below `vllm`.
        name: a function, a class, or `Class.member` (a method, a field, or an attribute set in `__init__`).
        parameters: parameters of a function or method that are passed by name or expected.
        why: what it is used for.
        since: the first release series that has it, if an older one is supported without it.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    why: str = ""
    since: str = ""

    def __str__(self) -> str:
        return f"vllm.{self.module}.{self.name}"


def _all(module: str, names: str, why: str) -> tuple[Hook, ...]:
    return tuple(Hook(module, name, why=why) for name in names.split())


_GATHERED = ("all_gather_group", "all_gather_tensors")
_GROUP = "distributed.parallel_state"
_OUTPUT = "v1.core.sched.output"
_V2_RUNNER = "v1.worker.gpu.model_runner"

HOOKS: tuple[Hook, ...] = (
    # the executor
    *_all("v1.executor.abstract", "Executor Executor.supports_pp Executor._init_executor", "the ring is an executor"),
    Hook("v1.executor.abstract", "Executor.collective_rpc", ("method", "timeout", "args", "kwargs", "non_block")),
    Hook("v1.executor.abstract", "Executor.execute_model", ("scheduler_output", "non_block")),
    Hook("v1.executor.abstract", "Executor.sample_tokens", ("grammar_output", "non_block")),
    Hook("v1.executor.abstract", "Executor.register_failure_callback", ("callback",)),
    *_all("v1.executor.abstract", "Executor.check_health Executor.shutdown", "health and end"),
    *_all("v1.engine.core", "EngineCore EngineCore.step_with_batch_queue", "no rest after an answer"),
    Hook("v1.engine.core", "EngineCore.model_executor", why="likewise"),
    *_all("engine.arg_utils", "AsyncEngineArgs EngineArgs.pipeline_parallel_size", "every process's configuration"),
    Hook("engine.arg_utils", "EngineArgs.create_engine_config", ("usage_context",)),
    *_all("engine.arg_utils", "EngineArgs.from_cli_args EngineArgs.distributed_executor_backend", "likewise"),
    *_all("usage.usage_lib", "UsageContext UsageContext.OPENAI_API_SERVER", "defaults of a server"),
    *_all("entrypoints.cli.serve", "make_arg_parser validate_parsed_serve_args", "the command line of vllm serve"),
    Hook("utils.argparse_utils", "FlexibleArgumentParser", why="likewise"),
    Hook("entrypoints.launchers.api_server.entry", "run_server", ("args",), "the OpenAI server, in the head"),
    *_all(
        "v1.engine.input_processor", "InputProcessor InputProcessor.process_inputs",
        "what is not carried is a client's error",
    ),
    *_all("v1.engine", "EngineCoreRequest EngineCoreRequest.mm_features", "likewise"),
    *_all("exceptions", "VLLMValidationError VLLMClientError", "likewise"),
    Hook("multimodal.media.connector", "MediaConnector", why="likewise"),
    Hook("multimodal.media.connector", "MediaConnector.load_from_url_async", ("url", "media_io"), "likewise"),
    Hook("entrypoints.llm", "LLM", why="zpptool.LLM is one"),
    # the worker
    Hook("v1.worker.worker_base", "WorkerWrapperBase.__init__", ("rpc_rank", "global_rank"), "a worker of one stage"),
    Hook("v1.worker.worker_base", "WorkerWrapperBase.init_worker", ("all_kwargs",)),
    *_all("v1.worker.worker_base", "WorkerWrapperBase WorkerWrapperBase.initialize_from_config", "likewise"),
    *_all("v1.worker.worker_base", "WorkerWrapperBase.init_device CompilationTimes", "likewise"),
    Hook(
        "v1.worker.gpu_worker", "init_worker_distributed_environment",
        ("vllm_config", "rank", "distributed_init_method", "local_rank", "backend"),
    ),
    Hook("v1.worker.cpu_worker", "init_worker_distributed_environment", why="bound by name here too"),
    Hook("v1.worker.xpu_worker", "init_worker_distributed_environment", why="bound by name here too"),
    Hook("v1.worker.gpu_worker", "Worker.execute_model", ("scheduler_output",), "sends and receives in one step"),
    Hook("v1.worker.gpu_worker", "Worker.sample_tokens", ("grammar_output",)),
    Hook("v1.worker.gpu_model_runner", "GPUModelRunner.intermediate_tensors", why="buffers of a later stage"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.max_num_tokens GPUModelRunner.device", "likewise"),
    Hook("platforms", "current_platform", why="device type, block size"),
    Hook("platforms.interface", "Platform.update_block_size_for_backend", ("vllm_config",)),
    # the pipeline group
    Hook("distributed", "parallel_state", why="holds the pipeline group"),
    *_all(_GROUP, "_PP get_pp_group GroupCoordinator", "the pipeline group"),
    Hook(_GROUP, "GroupCoordinator.isend_tensor_dict", ("tensor_dict", "dst", *_GATHERED)),
    Hook(_GROUP, "GroupCoordinator.irecv_tensor_dict", ("src", *_GATHERED)),
    *_all(_GROUP, "GroupCoordinator.destroy GroupCoordinator.rank_in_group GroupCoordinator.ranks", "likewise"),
    # layers and weights
    *_all("envs", "VLLM_PP_LAYER_PARTITION VLLM_ENABLE_V1_MULTIPROCESSING", "read by vLLM from the environment"),
    Hook("envs", "VLLM_USE_V2_MODEL_RUNNER", why="likewise"),
    Hook("model_executor.models.utils", "PPMissingLayer", why="the placeholder for a layer of another stage"),
    Hook("model_executor.model_loader", "register_model_loader", ("load_format",), "a loader of own tensors"),
    Hook("model_executor.model_loader.default_loader", "DefaultModelLoader.get_all_weights", ("model_config", "model")),
    Hook("model_executor.model_loader.default_loader", "DefaultModelLoader", why="likewise"),
    Hook(
        "model_executor.model_loader.default_loader", "DefaultModelLoader.counter_before_loading_weights",
        why="the time that loading took, in the log",
    ),
    Hook(
        "model_executor.models.interfaces", "SupportsMultiModal._mark_tower_model",
        ("vllm_config", "modalities", "targets"), "towers are on stage 0 only",
    ),
    Hook("model_executor.models.interfaces", "SupportsMultiModal", why="likewise"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.supports_mm_inputs", "likewise"),
    Hook("config.multimodal", "MultiModalConfig.get_limit_per_prompt", ("modality",), "likewise"),
    Hook("distributed.utils", "get_pp_indices", ("num_hidden_layers", "pp_rank", "pp_size"), "vLLM's own partition"),
    *_all("config", "VllmConfig ModelConfig", "the configuration"),
    *_all("config.parallel", "ParallelConfig.rank ParallelConfig.world_size", "a stage's place decides its layers"),
    *_all("config.parallel", "ParallelConfig.pipeline_parallel_size ParallelConfig.tensor_parallel_size", "likewise"),
    Hook("config.parallel", "ParallelConfig.worker_cls", why="the platform's worker, imported by a spare process"),
    Hook("config", "VllmConfig.use_v2_model_runner", why="every stage uses the same model runner"),
    *_all("config.compilation", "CompilationConfig.cudagraph_mode CompilationConfig.cudagraph_capture_sizes", "same"),
    # the scheduler
    *_all("v1.core.sched.scheduler", "Scheduler Scheduler.running Scheduler.waiting", "one sequence a step"),
    *_all("v1.core.sched.scheduler", "Scheduler.max_num_scheduled_tokens", "likewise"),
    *_all("v1.core.sched.scheduler", "Scheduler.finished_req_ids Scheduler.get_request_counts", "is a step empty?"),
    Hook("v1.core.sched.scheduler", "Scheduler.schedule", ("throttle_prefills",)),
    *_all("v1.core.sched.scheduler", "Scheduler.scheduler_config Scheduler.cache_config", "chunks of prompts"),
    *_all("v1.core.sched.scheduler", "Scheduler.need_mamba_block_aligned_split Scheduler.current_step", "likewise"),
    *_all("config", "SchedulerConfig.long_prefill_token_threshold SchedulerConfig.enable_chunked_prefill", "likewise"),
    *_all("v1.request", "Request.has_encoder_inputs Request.num_tokens", "likewise"),
    *_all("v1.request", "Request Request.num_tokens_with_spec Request.num_output_placeholders", "likewise"),
    *_all("v1.request", "Request.num_computed_tokens", "likewise"),
    # requests outlive a stage
    Hook("v1.core.sched.scheduler", "Scheduler.reset_prefix_cache", ("reset_running_requests",), "all are put back"),
    Hook("v1.core.sched.scheduler", "Scheduler.update_from_output", ("scheduler_output", "model_runner_output")),
    *_all("v1.core.sched.scheduler", "Scheduler.reset_encoder_cache Scheduler.requests", "likewise"),
    *_all("v1.core.sched.scheduler", "Scheduler.kv_cache_config", "likewise"),
    *_all("v1.request", "Request.num_stale_output_tokens Request.drop_stale_output", "what is under way is dropped"),
    *_all("v1.request", "RequestStatus RequestStatus.PREEMPTED Request.output_token_ids", "which ones the stages know"),
    Hook("v1.engine", "EngineCoreOutputs", why="likewise"),
    Hook("v1.core.sched.output", "NewRequestData.from_request", ("request", "block_ids"), "a request registered again"),
    *_all("v1.core.sched.output", "SchedulerOutput.make_empty", "likewise"),
    Hook("v1.worker.gpu_model_runner", "GPUModelRunner._update_states", ("scheduler_output",), "forgets and registers"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.requests GPUModelRunner.input_batch", "likewise"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.execute_model_state GPUModelRunner.sampler", "likewise"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.num_prompt_logprobs", "likewise"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.discard_request_mask", "prompts in several steps, on a CPU"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.reset_encoder_cache", "likewise"),
    *_all("v1.sample.sampler", "Sampler.topk_topp_sampler", "a seeded generator is advanced"),
    *_all("config", "ModelConfig.is_diffusion ModelConfig.is_multimodal_model", "refused across stages"),
    # the V2 model runner
    *_all(_V2_RUNNER, "GPUModelRunner.req_states GPUModelRunner.pp_handler", "tokens by the scheduler's message"),
    *_all(_V2_RUNNER, "GPUModelRunner.num_speculative_steps GPUModelRunner.is_last_pp_rank", "likewise"),
    *_all(_V2_RUNNER, "GPUModelRunner.device GPUModelRunner.update_pp_decode_requests", "likewise"),
    Hook(
        _V2_RUNNER, "GPUModelRunner.postprocess_sampled",
        ("idx_mapping", "sampled_tokens", "num_sampled", "num_rejected"),
    ),
    *_all("v1.worker.gpu.pp_utils", "PPHandler PPHandler.get_prev_sampled_outputs", "likewise"),
    Hook("v1.worker.gpu.pp_utils", "PPHandler.receive", ("input_batch",)),
    *_all("v1.worker.gpu.pp_utils", "PPHandler.broadcast PPHandler.on_req_idx_freed", "likewise"),
    Hook("v1.worker.gpu.pp_utils", "PPHandler.relay_aux_hidden_states", why="likewise"),
    Hook("v1.worker.gpu.pp_utils", "compute_need_sampled_mask", ("input_batch",)),
    *_all("v1.worker.gpu.states", "RequestState.req_id_to_index RequestState.prefill_len", "likewise"),
    *_all(_OUTPUT, "CachedRequestData.req_ids CachedRequestData.num_computed_tokens", "likewise"),
    *_all(_OUTPUT, "CachedRequestData.new_token_ids NewRequestData.prefill_token_ids", "likewise"),
    Hook("utils.torch_utils", "async_tensor_h2d", ("data", "device", "dtype"), "likewise"),
    *_all("v1.outputs", "AsyncModelRunnerOutput AsyncModelRunnerOutput.get_output", "an output in host memory"),
    *_all("v1.worker.gpu.async_utils", "AsyncOutput.get_output AsyncPoolingOutput.get_output", "likewise"),
    Hook(_V2_RUNNER, "GPUModelRunner.finish_requests", ("scheduler_output",), "all requests are forgotten"),
    *_all(_V2_RUNNER, "GPUModelRunner.execute_model_state GPUModelRunner.reset_encoder_cache", "likewise"),
    Hook(_V2_RUNNER, "GPUModelRunner.add_requests", ("scheduler_output",), "a resumed request is a new one"),
    Hook(_V2_RUNNER, "GPUModelRunner.intermediate_tensors", why="buffers of a later stage"),
    Hook("v1.worker.gpu.warmup", "warmup_kernels", ("worker_execute_model",), "computes steps, without neighbours"),
    Hook("v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", why="likewise"),
    # layers move between stages
    Hook("v1.engine.core", "get_kv_cache_configs", why="the caches of another partition"),
    Hook("v1.engine.core", "get_global_kv_cache_groups", ("vllm_config", "kv_cache_specs"), since="0.33"),
    *_all("config.cache", "CacheConfig.num_gpu_blocks_override CacheConfig.kv_cache_memory_bytes", "likewise"),
    *_all("v1.kv_cache_interface", "KVCacheConfig.num_blocks KVCacheConfig.kv_cache_groups", "likewise"),
    *_all("v1.kv_cache_interface", "KVCacheConfig.kv_cache_tensors", "likewise"),
    # the cache of a model, before it runs
    Hook("v1.engine.core", "resolve_kv_cache_layout", why="the layout that the engine core chooses"),
    *_all("v1.kv_cache_interface", "KVCacheSpec.max_memory_usage_bytes KVCacheSpec.page_size_bytes", "blocks"),
    *_all("v1.kv_cache_interface", "UniformTypeKVCacheSpecs.max_memory_usage_pages MambaSpec", "likewise"),
    *_all("v1.kv_cache_interface", "KVCacheSpec.block_size", "likewise"),
    *_all("config", "ModelConfig.max_model_len ModelConfig.get_vocab_size", "likewise"),
    *_all("config.compilation", "CompilationConfig.static_forward_context", "which decoder layer has which cache"),
    *_all("v1.worker.gpu_model_runner", "GPUModelRunner.get_model", "likewise"),
    Hook(
        "model_executor.model_loader.base_loader", "BaseModelLoader.create_model",
        ("vllm_config", "model_config", "prefix"), "a model without weights",
    ),
    # adapters, on a CPU
    *_all("lora.ops.torch_ops", "lora_ops", "a row without an adapter takes none"),
    *_all("lora.punica_wrapper", "punica_cpu", "likewise"),
    Hook("lora.ops.torch_ops.lora_ops", "bgmv_shrink", ("scaling",), "likewise"),
    Hook("lora.ops.torch_ops.lora_ops", "bgmv_expand", ("add_inputs",), "the logprobs of prompts beside adapters"),
    *_all("lora.punica_wrapper.punica_cpu", "bgmv_shrink bgmv_expand", "likewise"),
    # what a stage would keep of one request for others
    Hook("config", "ModelConfig.score_type", why="scores by late interaction are refused"),
    Hook("config", "ModelConfig.architectures", why="classes that fail in stages are refused"),
    # what travels
    *_all(_OUTPUT, "SchedulerOutput GrammarOutput NewRequestData CachedRequestData", "control objects"),
    Hook("v1.core.sched", "output", why="control objects"),
    Hook("v1", "kv_cache_interface", why="control objects"),
    *_all("v1.kv_cache_interface", "KVCacheConfig KVCacheSpec KVCacheTensor KVCacheGroupSpec", "control objects"),
    *_all("v1.kv_cache_interface", "AttentionSpec AttentionSpec.num_kv_heads MLAAttentionSpec", "a rank's share"),
    *_all("v1.kv_cache_interface", "UniformTypeKVCacheSpecs UniformTypeKVCacheSpecs.kv_cache_specs", "likewise"),
    *_all("v1.kv_cache_interface", "KVCacheTensor.size KVCacheTensor.layer_stride", "likewise"),
    *_all("v1.kv_cache_interface", "KVCacheTensor.block_stride KVCacheTensor.offset", "likewise"),
    *_all("v1.outputs", "ModelRunnerOutput LogprobsLists LogprobsTensors SamplingMaskLists", "control objects"),
    *_all("v1.outputs", "KVConnectorOutput DraftTokenIds EMPTY_MODEL_RUNNER_OUTPUT", "control objects"),
    *_all("compilation.cuda_graph", "CUDAGraphStat", "control objects"),
    *_all("v1.core.kv_cache_utils", "KVCacheBlockCopy", "control objects"),
    *_all("v1.attention.backend", "MultipleOf", "control objects"),
    *_all("v1.attention.backends.registry", "MambaAttentionBackendEnum", "control objects"),
    *_all("sampling_params", "SamplingParams SamplingType StructuredOutputsParams", "control objects"),
    *_all("sampling_params", "RequestOutputKind RepetitionDetectionParams", "control objects"),
    *_all("pooling_params", "PoolingParams LateInteractionParams", "control objects"),
    *_all("lora.request", "LoRARequest", "control objects"),
    *_all("multimodal.inputs", "MultiModalFeatureSpec MultiModalKwargsItem MultiModalFieldElem", "control objects"),
    *_all("multimodal.inputs", "MultiModalBatchedField MultiModalFlatField MultiModalSharedField", "control objects"),
    *_all("multimodal.inputs", "PlaceholderRange", "control objects"),
)  # fmt: skip

GROUP_NAMES = frozenset(
    {
        "device_group", "first_rank", "irecv_tensor_dict", "is_first_rank", "is_last_rank", "isend_tensor_dict",
        "last_rank", "make_sibling_device_group", "next_rank", "prev_rank", "rank", "rank_in_group", "ranks",
        "world_size",
    }
)  # fmt: skip
"""The attributes of the pipeline group that vLLM's workers and both runners read. The wire group has them, itself or
from the group of one stage that vLLM built."""
UNUSED_GROUP_NAMES = frozenset({"broadcast", "broadcast_object", "broadcast_tensor_dict", "recv", "send_tensor_dict"})
"""Read only with features that are not used here: async scheduling, an external launcher, elastic experts."""

HANDLER_NAMES = frozenset(
    {"broadcast", "get_prev_sampled_outputs", "on_req_idx_freed", "receive", "relay_aux_hidden_states"}
)
"""The attributes of V2's `PPHandler` that the runner uses. `compat/scheduler_tokens.py` has them."""
UNUSED_HANDLER_NAMES = frozenset({"broadcast_drafts", "configure_aux_hidden_state_relay"})
"""Used only with speculative decoding."""

NOT_ACROSS_STAGES = frozenset(
    {
        "apply_model", "checkpoint_prepare", "checkpoint_restore", "compute_weight_checksums", "discard",
        "finish_weight_update", "get_kv_connector_handshake_metadata", "handle_ft_command",
        "init_weight_transfer_engine", "save_sharded_state", "shutdown", "shutdown_weight_transfer_engine",
        "start_draft_weight_update", "start_weight_update", "update_weights",
    }
)  # fmt: skip
"""Calls of vLLM's engine to its workers that a stage refuses by name."""


def contract_digest() -> str:
    """A digest of the list, kept with the record of a check, to show which list was checked."""
    names = [(hook.module, hook.name, hook.parameters) for hook in HOOKS]
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]
