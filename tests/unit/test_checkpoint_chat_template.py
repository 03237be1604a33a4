# SPDX-License-Identifier: Apache-2.0
"""A chat template is found in each of the files that transformers reads one from."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.checkpoint.chat_template import has_chat_template


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("chat_template.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "{", False),
        ("config.json", "{}", False),
    ],
)
def test_a_chat_template_is_found(name: str, text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert has_chat_template(tmp_path) is expected
