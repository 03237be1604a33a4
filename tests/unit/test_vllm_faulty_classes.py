# SPDX-License-Identifier: Apache-2.0
"""Stages refuse, by name and with the reason, the classes of vLLM that fail as a pipeline."""

from __future__ import annotations

import pytest

from zpptool.engines.vllm.compat.faulty_classes import FAULTY_CLASSES, refuse_faulty_class
from zpptool.errors import ExitCode, ZppError


@pytest.mark.parametrize("name", FAULTY_CLASSES)
def test_a_faulty_class_is_refused_in_stages(name: str) -> None:
    with pytest.raises(ZppError, match=name) as caught:
        refuse_faulty_class([name], 2, "0.32.0")
    assert FAULTY_CLASSES[name] in caught.value.message
    assert caught.value.exit_code == ExitCode.INVALID


def test_a_pipeline_of_one_stage_another_class_and_another_release_are_not_refused() -> None:
    name = next(iter(FAULTY_CLASSES))
    refuse_faulty_class([name], 1, "0.32.0")
    refuse_faulty_class(["LlamaForCausalLM"], 2, "0.32.0")
    refuse_faulty_class([name], 2, "0.33.0")
