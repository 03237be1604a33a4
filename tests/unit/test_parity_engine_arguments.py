# SPDX-License-Identifier: Apache-2.0
"""A trial's prompts fit the model, whatever its config calls the length of a sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.parity.trial_plan import TRIAL_MODEL_LEN, long_prompts, longest_sequence


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 300}, 300),
        ({"n_positions": 128, "n_ctx": 64}, 128),
        ({"max_seq_len": 99}, 99),
        ({"text_config": {"num_hidden_layers": 2, "max_position_embeddings": 77}, "max_position_embeddings": 5}, 5),
        ({"text_config": {"num_hidden_layers": 2, "max_position_embeddings": 77}, "num_hidden_layers": None}, 77),
        ({"max_position_embeddings": 8192}, TRIAL_MODEL_LEN),
        ({"max_position_embeddings": None}, TRIAL_MODEL_LEN),
        ({}, TRIAL_MODEL_LEN),
    ],
)
def test_the_longest_sequence_is_the_models_or_the_trials(
    config: dict[str, object], longest: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **config}))
    assert longest_sequence(tmp_path) == longest


def test_long_prompts_leave_room_for_their_answers() -> None:
    assert long_prompts(1024, 32) == (150, 300)
    assert long_prompts(200, 32) == (150, 168)
    assert long_prompts(100, 32) == (68,)
    assert long_prompts(33, 32) == (1,)


@pytest.mark.parametrize("max_new_tokens", [32, 33, 4000])
def test_answers_that_leave_no_room_are_refused(max_new_tokens: int) -> None:
    with pytest.raises(ZppError, match=f"answers of {max_new_tokens} tokens") as caught:
        long_prompts(32, max_new_tokens)
    assert caught.value.exit_code == ExitCode.USAGE
