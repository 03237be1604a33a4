# SPDX-License-Identifier: Apache-2.0
"""A trial's outcome for programs: one JSON object, and a JUnit file with a test case a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.parity.compare import PromptParity, Verdict, verdict_of

_NO_PROMPT = {"message": "there was no prompt"}


def payload(specs: Sequence[StageSpec], results: Sequence[PromptParity], seconds: float) -> dict[str, Any]:
    """The object that `--json` prints and `--report` writes.

    Args:
        specs: the stages.
        results: one a prompt.
        seconds: the trial's duration.
    """
    return {
        "verdict": verdict_of(results),
        "engine": specs[0].engine,
        "num_stages": len(specs),
        "stages": [
            {"stage": spec.stage, "layers": list(spec.layers), "model": spec.model, "bind": spec.bind} for spec in specs
        ],
        "seconds": round(seconds, 1),
        "prompts": [
            {
                "prompt": result.prompt,
                "prompt_tokens": result.prompt_tokens,
                "text": result.pipeline.text,
                "reference_text": result.reference.text,
                "token_ids": list(result.pipeline.token_ids),
                "reference_token_ids": list(result.reference.token_ids),
                "identical": result.identical,
                "first_difference": result.first_difference,
            }
            for result in results
        ],
    }


def error_payload(engine: str, num_stages: int | None, fault: ZppError) -> dict[str, Any]:
    """The same object for a trial that failed with an error; `num_stages` is None where it is unknown."""
    return {
        "verdict": Verdict.ERROR, "engine": engine, "num_stages": num_stages, "prompts": [], "error": fault.as_json()
    }  # fmt: skip


def junit(outcome: Mapping[str, Any]) -> str:
    """The payload as JUnit XML: a failure for each prompt whose tokens differ, an error for a trial that failed."""
    prompts = outcome["prompts"]
    different = [prompt for prompt in prompts if not prompt["identical"]]
    broken = outcome["verdict"] == Verdict.ERROR
    suite = ElementTree.Element(
        "testsuite",
        name="zpptool test-pipeline",
        tests=str(len(prompts) + broken),
        failures=str(len(different)),
        errors=str(int(broken)),
        time=str(outcome.get("seconds", 0)),
    )
    stages = outcome["num_stages"]
    classname = outcome["engine"] if stages is None else f"{outcome['engine']}.{stages}-stages"
    for number, prompt in enumerate(prompts):
        name = f"prompt {number}: {_printable(prompt['prompt'])[:60]}"
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name)
        if not prompt["identical"]:
            failure = ElementTree.SubElement(
                case, "failure", message=f"the first different token is number {prompt['first_difference']}"
            )
            failure.text = f"expected {prompt['reference_token_ids']}\ngot      {prompt['token_ids']}"
    if broken:
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name="the pipeline runs")
        ElementTree.SubElement(case, "error", message=_printable(outcome.get("error", _NO_PROMPT)["message"]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """The text with a space for each character that is not printable, because XML allows few control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
