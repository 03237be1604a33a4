# SPDX-License-Identifier: Apache-2.0
"""Which modules of vLLM's server tests are run, and with which arguments their server is started. Data only.

A group is one server: modules whose arguments do not contradict each other share it, because a start takes longer
than most modules. A module that needs two servers is in two groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub's name of the model that the tests are run with; it replaces the model names of the tests."""

TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
ADAPTERS = ("--enable-lora", "--max-lora-rank", "64", "--max-loras", "2", "--max-cpu-loras", "4")

CAPACITY = frozenset({
    "--max-model-len", "--max_model_len", "--max-num-seqs", "--max-num-batched-tokens", "--max-lora-rank",
    "--max-cpu-loras", "--dtype", "--enforce-eager", "--gpu-memory-utilization", "--port", "--seed",
    "--trust-remote-code", "--tokenizer", "--enable-chunked-prefill", "--enable-prefix-caching",
    "--no-enable-prefix-caching", "--no-async-scheduling", "--structured-outputs-config.backend", "--max-logprobs",
    "--runner",
})  # fmt: skip
"""Arguments that a test's server need not have: sizes, number formats, and vLLM's defaults."""

ADAPTED = {
    "--reasoning-parser": "the model does not reason",
    "--served-model-name": "the group has its own",
    "--lora-modules": "the group has its own",
    "--root-path": "the group has its own",
}
"""Arguments that are adapted: the server has another value, or none, for this reason."""


@dataclass(frozen=True)
class Module:
    """One file of tests.

    Attributes:
        path: below `tests/entrypoints`.
        only: words of which one has to occur in a test's name, if any are given.
        without: words that must not occur in it.
    """

    path: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def has(self, test: str) -> bool:
        """Whether this is one of its tests that are to be run; `test` is its id, relative to `tests/entrypoints`."""
        path, _, name = test.partition("::")
        if path != self.path or any(word in name for word in self.without):
            return False
        return not self.only or any(word in name for word in self.only)


@dataclass(frozen=True)
class Group:
    """One server and the modules that are run against it.

    Attributes:
        name: in the records.
        modules: what is run.
        args: of `vllm serve`, besides those that every server has.
        served_name: what requests call the model.
        max_model_len: tokens of prompt and answer.
        env: of the server.
        api_key: that it asks for; none if empty.
        adapters: names of adapters that it has from the beginning.
    """

    name: str
    modules: tuple[Module, ...]
    args: tuple[str, ...] = ()
    served_name: str = MODEL_NAME
    max_model_len: int = 1280
    env: dict[str, str] = field(default_factory=dict)
    api_key: str = ""
    adapters: tuple[str, ...] = ()

    def offers(self) -> list[str]:
        """What it has of the arguments that a test may ask for."""
        lora = [*ADAPTERS, "--lora-modules"] if self.adapters else []
        return [*self.args, *lora, *(["--api-key", self.api_key] if self.api_key else [])]


WITH_ADAPTER = ("lora",)
CHAT = "openai/chat_completion"
MIDDLEWARE = "serve/middleware/test_optional_middleware.py"
REQUEST_IDS = ("enable_request_id", "custom_request")
BY_KEY = ("missing_api_token", "passed_api_token", "skips_auth", "rejects_missing", "accepts_valid")

GROUPS = (
    Group(
        "plain",
        (
            Module(f"{CHAT}/test_chat.py", without=WITH_ADAPTER),
            Module(f"{CHAT}/test_chat_completion.py"),
            Module(f"{CHAT}/test_batched_chat_completions.py"),
            Module(f"{CHAT}/test_chat_logit_bias_validation.py"),
            Module(f"{CHAT}/test_logprob_token_ids.py"),
            Module("openai/completion/test_completion.py"),
            Module("openai/completion/test_prompt_validation.py"),
            Module("openai/test_chunked_prompt.py"),
            Module("openai/test_return_tokens_as_ids.py", without=("True",)),
            Module("generate/generative_scoring/test_generative_scoring_e2e.py"),
            Module("generate/structured_decisions/test_structured_decisions_e2e.py"),
            Module("scale_out/token_in_token_out/test_serving_tokens.py"),
            Module("serve/instrumentator/test_basic.py", without=("cancellation",)),
            Module("serve/instrumentator/test_metrics.py", without=("hidden", "multimodal")),
            Module("serve/instrumentator/test_orca_metrics.py"),
            Module(MIDDLEWARE, without=(*BY_KEY, *REQUEST_IDS)),
            Module("serve/tokenize/test_tokenization.py"),
        ),
        (
            "--enable-prompt-tokens-details", "--no-enable-prefix-caching", "--enable-tokenizer-info-endpoint",
            "--enable-scale-out", "--enable-server-load-tracking", "--enable-lora",
        ),
    ),
    Group(
        "tools",
        (
            Module(f"{CHAT}/test_completion_with_function_calling.py", without=("watermark",)),
            Module("openai/test_return_token_ids.py"),
            Module("scale_out/derender/test_derender_parity.py"),
            Module("tool_parsers/test_hermes_tool_parser.py", without=("granite",)),
        ),
        (*TOOLS, "--enable-scale-out"),
    ),
    Group(
        "messages",
        (Module("anthropic/test_messages.py"),),
        (*TOOLS, "--enable-prompt-tokens-details"),
        served_name="claude-3-7-sonnet-latest",
        max_model_len=2048,
    ),
    Group(
        "responses",
        (
            *(
                Module(f"openai/responses/test_{name}.py")
                for name in ("basic", "function_call", "simple", "stateful", "structured_output")
            ),
            Module("openai/responses/test_namespace_tool_separator.py"),
        ),
        TOOLS,
        env={
            "VLLM_ENABLE_RESPONSES_API_STORE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_SYSTEM_START_DATE": "2023-09-12",
        },
    ),
    Group("logprobs", (Module(f"{CHAT}/test_chat_echo.py"),), ("--max-logprobs", "49152")),
    Group(
        "reasoning",
        (
            Module(f"{CHAT}/test_include_reasoning.py"),
            Module(f"{CHAT}/test_thinking_token_budget.py", without=("qwen35",)),
        ),
        ("--reasoning-parser", "qwen3"),
    ),
    Group("embeds", (
        Module(f"{CHAT}/test_chat_completion_with_prompt_embeds.py"),
        Module("openai/completion/test_completion_with_prompt_embeds.py", without=WITH_ADAPTER),
    ), ("--enable-prompt-embeds",)),
    Group("long", (Module("serve/instrumentator/test_basic.py", only=("cancellation",)),), max_model_len=10100,
          env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}),
    Group("usage", (Module(f"{CHAT}/test_enable_force_include_usage.py"),), ("--enable-force-include-usage",)),
    Group("key", (Module(MIDDLEWARE, only=BY_KEY),), api_key="test"),
    Group(
        "request ids",
        (
            Module(MIDDLEWARE, only=REQUEST_IDS),
            Module("openai/test_return_tokens_as_ids.py", only=("True",)),
        ),
        ("--enable-request-id-headers", "--return-tokens-as-token-ids"),
    ),
    Group("root path", (Module(f"{CHAT}/test_root_path.py"),), ("--root-path", "/llm"), api_key="abc-123"),
    Group(
        "cohere",
        (Module("cohere/test_chat_v2.py"),),
        ("--no-cohere-is-reasoning-model", "--enable-scale-out"),
        served_name="command-r-plus-08-2024",
        env={"VLLM_ENABLE_COHERE_API": "1"},
    ),
    Group(
        "adapters",
        (
            Module(f"{CHAT}/test_chat.py", only=WITH_ADAPTER),
            Module("openai/models/test_models.py"),
            Module("serve/lora/test_lora_adapters.py"),
            Module("serve/sagemaker/test_sagemaker_lora_adapters.py"),
            Module("serve/sagemaker/test_sagemaker_stateful_sessions.py"),
        ),
        adapters=("qwen3-lora", "zephyr-lora"),
        env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "True"},
    ),
)  # fmt: skip

LEFT_OUT = {
    "launchers/": "they test processes that vLLM starts",
    "multimodal/": "needs a model that takes more than text",
    "pooling/": "needs a pooling model",
    "rl/": "needs weights sent to a running engine, or a mixture of experts",
    "speech_to_text/": "needs a speech model",
    f"{CHAT}/test_extra_content_fields.py": "needs a model that takes images",
    f"{CHAT}/test_serving_chat.py": "needs gpt-oss",
    "openai/completion/test_tensorizer_entrypoint.py": "needs tensorizer",
    "openai/completion/test_token_in_token_out.py": "starts a server without a tokenizer and with made-up weights",
    "openai/correctness/": "measures a model's accuracy",
    "openai/responses/test_harmony.py": "needs gpt-oss",
    "openai/responses/test_mcp_tools.py": "needs gpt-oss",
    "openai/responses/test_parsable_context.py": "needs gpt-oss's package",
    "openai/test_openai_schema.py": "sends random requests: needs schemathesis, and a model that takes images",
    "scale_out/render/": "needs a model that takes images",
    "scale_out/token_in_token_out/test_serving_multimodal_tokens.py": "needs a model that takes images",
    "serve/dev/rpc/": "its code would have to be imported by the workers",
    "serve/instrumentator/test_uds.py": "a server on a unix socket",
    "serve/sagemaker/conftest.py": "no tests",
    "serve/sagemaker/test_sagemaker_handler_overrides.py": "starts servers with code of its own",
    "serve/sagemaker/test_sagemaker_middleware_integration.py": "starts servers with code of its own",
    "serve/tokenize/test_tokenization_vlm.py": "needs a model that takes images",
    "serve/tokenize/test_tokenize_then_chat_vlm.py": "needs a model that takes images",
    "tool_parsers/test_granite4_tool_parser.py": "needs Granite 4",
    "tool_parsers/test_openai_tool_parser.py": "needs gpt-oss",
    "unit_tests/": "they test the fixture that is replaced here",
    "openai/responses/conftest.py": "no tests",
}
"""Files that start a server and are not run, with the reason; a path that ends with a slash is a directory."""

HUB_NAMES = (
    "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceH4/zephyr-7b-beta",
    "Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "facebook/opt-125m",
    "google/gemma-1.1-2b-it", "ibm-granite/granite-4.0-h-tiny", "intfloat/multilingual-e5-small",
    "meta-llama/Llama-3.2-1B-Instruct", "minpeter/LoRA-Llama-3.2-1B-tool-vllm-ci", "openai-community/gpt2",
)  # fmt: skip
"""Models that the tests name; each of them is the one model of the run."""

HUB_ADAPTERS = (
    "Jackmin108/Qwen3-0.6B-Meow-LoRA", "Jackmin108/Qwen3-0.6B-Woof-LoRA", "charent/self_cognition_Alice",
    "jekunz/smollm-135m-lora-fineweb-faroese", "peft-internal-testing/opt-125m-dummy-lora",
    "typeof/zephyr-7b-beta-lora",
)  # fmt: skip
"""Adapters that the tests name; each of them is one that is made for the model of the run."""
