# SPDX-License-Identifier: Apache-2.0
"""Tiny vision-language models with real processors, made without a model hub.

Each has random weights that are large enough for another image to give another answer, a byte-level tokenizer with the
model's special tokens, the processor that the published models have, and a chat template where the processor wants one.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT_SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""The text of all messages; IMAGE stands for the tokens of an image."""

QWEN_WORDS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_IDS = {
    "vision_start_token_id": 258, "vision_end_token_id": 259, "image_token_id": 260, "video_token_id": 261
}  # fmt: skip


IMAGE_WORDS = {
    "llava": "<image>", "qwen2_5_vl": QWEN_IMAGE, "qwen3_vl": QWEN_IMAGE, "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]", "idefics3": "<image>",
}  # fmt: skip
"""What stands for an image in a prompt, by the name of the function that makes the model."""


def picture(seed: int) -> Any:
    """An image of random colours; its width depends on the seed too."""
    from PIL import Image

    width, height = 40 + 16 * (seed % 4), 28
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


FIRST_SPECIAL = 258
"""The token id of a tokenizer's first special word."""


Asked = tuple[str, tuple[int, ...], dict[str, Any]]


def rounds(image: str) -> list[list[Asked]]:
    """Prompts, the seeds of their images, sampling parameters. Those of one round are asked together; those of the
    second begin as one of the first did."""
    question = f"{image}What is this, and what is beside it? Say it in one word, please."
    return [
        [
            (question, (0,), {}),
            (question, (1,), {}),
            (f"Two: {image} and {image} now", (0, 2), {}),
            ("No image here", (), {}),
            (f"{image}n", (3,), {"temperature": 0.9, "seed": 5}),
        ],
        [(question, (0,), {}), (question, (2,), {})],
    ]


def byte_tokenizer(*special: str, **named: str) -> Any:
    """A tokenizer of bytes, and of these words as one token each, in this order; `image_token="<image>"` gives a word
    the name by which a processor knows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: place for place, letter in enumerate(letters, start=2)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for word in (*special, *named.values()):
        tokenizer.add_special_tokens([word])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", extra_special_tokens=named
    )


def make_llava(directory: Path, layers: int = 4) -> Path:
    """A LLaVA-1.5: CLIP, a projector, a Llama."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = byte_tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=32, initializer_range=0.3,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(num_hidden_layers=layers, **TEXT_SIZES), image_token_index=258
    )
    _save(LlavaForConditionalGeneration, config, directory, [("vision_tower.", "vision_tower.vision_model.")])
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_qwen2_5_vl(directory: Path, layers: int = 4) -> Path:
    """A Qwen2.5-VL: positions in three dimensions (M-RoPE)."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = byte_tokenizer(*QWEN_WORDS)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {**_without(TEXT_SIZES, "head_dim"), "num_hidden_layers": layers, "rope_parameters": rope}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_IDS, tie_word_embeddings=False)
    _save(Qwen2_5_VLForConditionalGeneration, config, directory)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=16 * 28 * 28), tokenizer,
        Qwen2VLVideoProcessor(min_pixels=28 * 28, max_pixels=16 * 28 * 28),
        chat_template=TEMPLATE.replace("IMAGE", QWEN_IMAGE),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_qwen3_vl(directory: Path, layers: int = 6) -> Path:
    """A Qwen3-VL: what the tower's first blocks compute is added after the first two layers (deepstack)."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = byte_tokenizer(*QWEN_WORDS)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128,
        "patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {**TEXT_SIZES, "num_hidden_layers": layers, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS, tie_word_embeddings=False)
    _save(Qwen3VLForConditionalGeneration, config, directory)
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=pixels), tokenizer, Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE.replace("IMAGE", QWEN_IMAGE),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_gemma3(directory: Path, layers: int = 4) -> Path:
    """A Gemma 3: the tokens of an image attend to each other in both directions."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        SiglipVisionConfig,
    )

    tokenizer = byte_tokenizer(
        *("\n" * count for count in range(1, 5)),
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    text = {**TEXT_SIZES, "num_hidden_layers": layers, "sliding_window": 16, "query_pre_attn_scalar": 32}
    text["layer_types"] = [("full_attention", "sliding_attention")[layer % 2] for layer in range(layers)]
    config = Gemma3Config(
        text_config=text, vision_config=vision.to_dict(), mm_tokens_per_image=4, boi_token_index=FIRST_SPECIAL + 4,
        eoi_token_index=FIRST_SPECIAL + 5, image_token_index=FIRST_SPECIAL + 6,
    )  # fmt: skip
    _save(Gemma3ForConditionalGeneration, config, directory, [("vision_tower.", "vision_tower.vision_model.")])
    Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}), tokenizer, image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_internvl(directory: Path, layers: int = 4) -> Path:
    """An InternVL 3 with its published names of transformers, and a Qwen 2 as its decoder."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    tokenizer = byte_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    vision = InternVLVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32],
        patch_size=[8, 8],
    )  # fmt: skip
    text = Qwen2Config(**_without(TEXT_SIZES, "head_dim"), num_hidden_layers=layers)
    config = InternVLConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=FIRST_SPECIAL + 2,
        image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    _save(InternVLForConditionalGeneration, config, directory)
    images = GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4)
    InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size={"height": 32, "width": 32}), image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_mistral3(directory: Path, layers: int = 4) -> Path:
    """A Mistral Small 3.1: Pixtral's tower takes images of any size."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    tokenizer = byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    vision = PixtralVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8
    )
    text = MistralConfig(**TEXT_SIZES, num_hidden_layers=layers)
    config = Mistral3Config(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=FIRST_SPECIAL,
        spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    _save(Mistral3ForConditionalGeneration, config, directory)
    PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8), tokenizer, patch_size=8, spatial_merge_size=2,
        chat_template=TEMPLATE.replace("IMAGE", "[IMG]"),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def make_idefics3(directory: Path, layers: int = 4) -> Path:
    """An Idefics 3, which a SmolVLM is too."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    tokenizer = byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    text = LlamaConfig(**TEXT_SIZES, num_hidden_layers=layers)
    config = Idefics3Config(
        vision_config=vision, text_config=text.to_dict(), image_token_id=FIRST_SPECIAL, scale_factor=2, pad_token_id=1
    )
    _save(Idefics3ForConditionalGeneration, config, directory)
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    ).save_pretrained(directory)
    return directory


def _save(kind: Any, config: Any, directory: Path, renamed: Sequence[tuple[str, str]] = ()) -> None:
    """Make a model of random weights and save it, with its tensors under their published names."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    if renamed:
        path = directory / "model.safetensors"
        tensors = load_file(path)
        for old, new in renamed:
            tensors = {name.replace(old, new, 1) if name.startswith(old) else name: t for name, t in tensors.items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name not in names}


if __name__ == "__main__":
    globals()[f"make_{sys.argv[1]}"](Path(sys.argv[2]))
