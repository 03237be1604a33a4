# SPDX-License-Identifier: Apache-2.0
"""The images of a trial, and the chat template of a model that has none."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.net.openai_client import ImageChat
from zpptool.parity.images import chat_template_arguments, data_urls


def test_images_are_sent_as_data_urls_before_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.JPG").write_bytes(b"two")
    urls = data_urls([tmp_path / "a.png", tmp_path / "b.JPG"])
    assert urls == tuple(
        f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        for kind, content in (("png", b"one"), ("jpeg", b"two"))
    )
    content = ImageChat("What?", urls).message()["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("a.txt", ExitCode.USAGE, "is not that of an image"),
        ("missing.png", ExitCode.USAGE, "cannot be read"),
        ("folder.png", ExitCode.INVALID, "is a directory"),
    ],
)
def test_what_is_no_image_is_refused(name: str, code: ExitCode, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ZppError, match=message) as fault:
        data_urls([tmp_path / name])
    assert fault.value.exit_code is code


def test_only_a_model_without_a_chat_template_gets_one(tmp_path: Path) -> None:
    flag, template = chat_template_arguments(tmp_path, ())
    assert flag == "--chat-template"
    assert "message.content" in template
    assert chat_template_arguments(tmp_path, ("--chat-template=x",)) == ()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    assert chat_template_arguments(tmp_path, ()) == ()
