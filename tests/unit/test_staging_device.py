# SPDX-License-Identifier: Apache-2.0
"""The real device of staging: which devices are staged, and that torch has what is called. Nothing is computed."""

from __future__ import annotations

import inspect

import pytest

torch = pytest.importorskip("torch")

from zpptool.config.runtime_options import RuntimeOptions  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402
from zpptool.engines.staging.device import TorchDevice, device_apart  # noqa: E402


def test_only_devices_with_memory_and_streams_of_their_own_are_staged() -> None:
    assert device_apart(None) is None
    assert device_apart(torch.device("cpu")) is None
    assert device_apart(torch.device("mps")) is None
    for name in ("cuda", "cuda:1", "xpu"):
        assert isinstance(device_apart(torch.device(name)), TorchDevice)


@pytest.mark.parametrize("module", [torch.cuda, torch.xpu], ids=["cuda", "xpu"])
def test_torch_takes_the_arguments_that_it_is_given(module: object) -> None:
    device = torch.device("cuda")
    inspect.signature(module.Stream.__new__).bind(module.Stream, device)
    inspect.signature(module.current_stream).bind(device)
    inspect.signature(module.stream).bind(None)
    inspect.signature(module.mem_get_info).bind(device)
    assert all(map(callable, (module.Stream.wait_event, module.Event.record, module.Event.synchronize)))
    options = {"blocking": True} if module is torch.cuda else {}
    inspect.signature(module.Event.__new__).bind(module.Event, **options)


def test_each_device_is_asked_for_its_own_stream() -> None:
    calls: list[tuple[str, object]] = []

    class Module:
        def __getattr__(self, name: str) -> object:
            return lambda *args, **options: calls.append((name, args, options))

    device = torch.device("cuda", 1)
    made = TorchDevice(device, Module())
    made.new_stream(), made.current_stream(), made.new_event()
    assert calls == [
        ("Stream", (device,), {}), ("current_stream", (device,), {}), ("Event", (), {"blocking": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "problem"),
    [("cuda:7", "torch cannot compute on cuda:7: "), ("nonsense", "torch cannot compute on nonsense: ")],
)
def test_a_device_that_is_not_there_is_refused_without_memory_of_it(
    device: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from zpptool.config.engine_kind import Engine
    from zpptool.engines.transformers.calls import check_arguments
    from zpptool.errors import ExitCode, ZppError

    monkeypatch.setattr(torch, "empty", lambda *_args, **_options: pytest.fail("it allocates"))
    spec = StageSpec(Engine.TRANSFORMERS, "m", ((0, 1),), 0, "", "", runtime=RuntimeOptions(device=device))
    with pytest.raises(ZppError, match=problem) as refused:
        check_arguments(spec)
    assert refused.value.exit_code is ExitCode.USAGE
    check_arguments(spec.with_runtime(device="cpu"))
