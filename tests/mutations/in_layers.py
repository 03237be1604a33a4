# SPDX-License-Identifier: Apache-2.0
"""Faults of the partition, and of what the modules of a layer compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import LAYERS, PLACES, Injection, Mutation, stage_of

CAUSE = "computation"
Result = Callable[[Any], Any]


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for layer in PLACES:
        for kind, taps, forward in _LAYER_CHANGES:
            group = "partition" if "layer" in kind else "numerics"
            yield Mutation(group, kind, f"layer {layer}", stage_of(layer), layer, taps, CAUSE,
                           on_switch=partial(_whole_layer, layer, forward))  # fmt: skip
    for layer in PLACES[:3]:
        for kind, module, change in _OUTPUTS:
            yield Mutation("numerics", kind, f"layer {layer}", stage_of(layer), layer, (module,), CAUSE,
                           on_switch=partial(_output, layer, module, change))  # fmt: skip
        for kind, module, name, value, tap in _SETTINGS:
            yield Mutation("numerics", kind, f"layer {layer}", stage_of(layer), layer, (tap,), CAUSE,
                           on_switch=partial(_setting, layer, module, name, value))  # fmt: skip
        yield Mutation("numerics", "another activation", f"layer {layer}", stage_of(layer), layer, ("mlp.act_fn",),
                       CAUSE, on_switch=partial(_activation, layer))  # fmt: skip
        yield Mutation("environment", "an adapter of another request", f"layer {layer}", stage_of(layer), layer,
                       ("self_attn.q_proj",), CAUSE, on_switch=partial(_adapter, layer))  # fmt: skip
    for factor in (2.0, 32**0.5, 0.5):
        yield Mutation("partition", "embedding scale twice", f"by {factor:.3g}", 0, -1, ("embedding",), CAUSE,
                       on_switch=partial(_embedding, factor))  # fmt: skip
    for stage, layer in ((0, 0), (1, 2)):
        yield Mutation("partition", "final norm on a middle stage", f"stage {stage}", stage, layer, ("wire out",),
                       "wire", on_switch=partial(_norm_at_end, layer))  # fmt: skip
    yield Mutation("partition", "final norm left out", "stage 2", 2, LAYERS, ("model.norm",), CAUSE,
                   on_switch=_no_final_norm)  # fmt: skip


def _whole_layer(layer: int, change: Callable[[Injection, Any, Any], Any], injection: Injection) -> None:
    module = injection.layer(layer)
    injection.replace(module, "forward", change(injection, module, module.forward))


def _skip(_injection: Injection, _module: Any, _forward: Any) -> Any:
    return lambda hidden_states, *_args, **_kwargs: hidden_states


def _twice(_injection: Injection, _module: Any, forward: Any) -> Any:
    return lambda hidden_states, *args, **kwargs: forward(forward(hidden_states, *args, **kwargs), *args, **kwargs)


def _without_residual(injection: Injection, module: Any, forward: Any) -> Any:
    own: list[Any] = []
    hook = module.mlp.register_forward_hook(lambda _module, _args, output: own.append(output))
    injection.undo.append(hook.remove)

    def run(*args: Any, **kwargs: Any) -> Any:
        own.clear()
        forward(*args, **kwargs)
        return own[0]

    return run


def _residual_of_the_step_before(_injection: Injection, _module: Any, forward: Any) -> Any:
    kept: list[Any] = []

    def run(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(hidden_states, *args, **kwargs)
        before = kept[-1][:, -1:] if kept else hidden_states.flip(1) * 0.5
        kept.append(hidden_states)
        return output - hidden_states + before

    return run


def _rounded(_injection: Injection, _module: Any, forward: Any) -> Any:
    return lambda *args, **kwargs: forward(*args, **kwargs).bfloat16().float()


_LAYER_CHANGES: tuple[tuple[str, tuple[str, ...], Callable[[Injection, Any, Any], Any]], ...] = (
    ("layer skipped", ("out",), _skip),
    ("layer twice", ("out", "state after*"), _twice),
    ("residual dropped", ("out",), _without_residual),
    ("residual of the step before", ("out",), _residual_of_the_step_before),
    ("rounded through another dtype", ("out",), _rounded),
)


def _output(layer: int, name: str, change: Result, injection: Injection) -> None:
    module = injection.layer(layer).get_submodule(name)
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    injection.replace(module, "forward", run)


_OUTPUTS: tuple[tuple[str, str, Result], ...] = (
    ("a reduction missing", "mlp.down_proj", lambda value: value * 0.5),
    ("a reduction twice", "self_attn.o_proj", lambda value: value * 2),
    ("attention negated", "self_attn", lambda value: -value),
    ("channels shifted", "mlp", lambda value: value.roll(1, -1)),
    ("halves in the order of other shards", "self_attn.o_proj", lambda value: value.roll(16, -1)),
)
_SETTINGS = (
    ("another epsilon", "input_layernorm", "variance_epsilon", 1e-2, "input_layernorm"),
    ("another softmax scale", "self_attn", "scaling", 0.3, "attention out"),
)


def _setting(layer: int, module: str, name: str, value: float, injection: Injection) -> None:
    injection.replace(injection.layer(layer).get_submodule(module), name, value)


def _activation(layer: int, injection: Injection) -> None:
    from torch import nn

    other = nn.GELU()
    injection.replace(injection.layer(layer).mlp.act_fn, "forward", lambda states: other(states))


def _adapter(layer: int, injection: Injection) -> None:
    import torch

    module = injection.layer(layer).self_attn.q_proj
    forward, delta = module.forward, torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    injection.replace(module, "forward", lambda states: forward(states) + (states @ delta.t()) @ delta * 0.01)


def _embedding(factor: float, injection: Injection) -> None:
    module = injection.part.model.get_input_embeddings()
    forward = module.forward
    injection.replace(module, "forward", lambda ids: forward(ids) * factor)


def _norm_at_end(_layer: int, injection: Injection) -> None:
    cut = injection.part._cut
    run = cut._run

    def normed(*args: Any, **kwargs: Any) -> Any:
        states = run(*args, **kwargs)
        return states * (states.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    injection.replace(cut, "_run", normed)


def _no_final_norm(injection: Injection) -> None:
    injection.replace(injection.part.model.get_decoder().norm, "forward", lambda states: states)
