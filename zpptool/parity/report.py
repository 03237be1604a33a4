# SPDX-License-Identifier: Apache-2.0
"""A trial's outcome for programs: one JSON object, and a JUnit file with a test case a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.parity.compare import PromptParity, Verdict, verdict_of
from zpptool.parity.witnessed import WitnessedTrial
from zpptool.witness.compare import Verdict as BitVerdict

_NO_PROMPT = {"message": "there was no prompt"}


def payload(
    specs: Sequence[StageSpec],
    results: Sequence[PromptParity],
    seconds: float,
    witness: WitnessedTrial | None = None,
    cause: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The object that `--json` prints and `--report` writes.

    Args:
        specs: the stages.
        results: one a prompt.
        seconds: the trial's duration.
        witness: what was recorded; None if nothing was.
        cause: what `localise` found; None if it was not used.
    """
    return {
        "verdict": verdict_of(results) if witness is None else _with_witness(verdict_of(results), witness.verdict),
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
        **({"witness": witness.as_json()} if witness is not None else {}),
        **({"cause": dict(cause)} if cause is not None else {}),
    }


def _with_witness(tokens: Verdict, bits: BitVerdict) -> Verdict:
    """The verdict of a trial by its tokens and by what was recorded."""
    if tokens is not Verdict.IDENTICAL or bits is BitVerdict.IDENTICAL:
        return tokens
    return Verdict.WITHIN_TOLERANCE if bits is BitVerdict.WITHIN_TOLERANCE else Verdict.OTHER_BITS


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
    witnessed = outcome.get("witness")
    other_bits = witnessed is not None and witnessed["verdict"] in (Verdict.OTHER_BITS, Verdict.DIFFERENT)
    suite = ElementTree.Element(
        "testsuite",
        name="zpptool test-pipeline",
        tests=str(len(prompts) + broken + (witnessed is not None)),
        failures=str(len(different) + other_bits),
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
    if witnessed is not None:
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name="the bits of every layer")
        if other_bits:
            ElementTree.SubElement(case, "failure", message=_printable(summary(outcome)))
    if broken:
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name="the pipeline runs")
        ElementTree.SubElement(case, "error", message=_printable(outcome.get("error", _NO_PROMPT)["message"]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def summary(outcome: Mapping[str, Any]) -> str:
    """One line on what the witness of a trial says.

    Args:
        outcome: a payload with a witness.
    """
    witnessed = outcome["witness"]
    if cause := outcome.get("cause"):
        return f"{where(cause)}: {cause['cause']} ({cause['kind']})"
    if witnessed["wrong_weights"]:
        wrong = witnessed["wrong_weights"][0]
        return f"stage {wrong['stage']}: the weight {wrong['name']} in memory is not that of {wrong['against']}"
    if witnessed["first_differences"]:
        return f"{where(witnessed['first_differences'][0])}: {witnessed['first_differences'][0]['what']}"
    elsewhere = witnessed.get("reference")
    if elsewhere and elsewhere["verdict"] not in (Verdict.IDENTICAL, Verdict.WITHIN_TOLERANCE):
        return f"not what the given record holds: {elsewhere['verdict']}"
    if witnessed["not_compared"]:
        names = sorted({name for own in witnessed["not_compared"].values() for name in own})
        return f"bits were not compared, for this is not the same on both sides: {', '.join(names)}"
    return f"{witnessed['hashes']} hashes of level {witnessed['level']} are equal"


def where(difference: Mapping[str, Any]) -> str:
    """The place of a difference in words."""
    prompt = "" if difference.get("prompt") is None else f"prompt {difference['prompt']}, "
    return (
        f"stage {difference['stage']}, layer {difference['layer']}, {difference['tap']}"
        f" ({prompt}step {difference['step']}, position {difference['position']})"
    )


def _printable(text: str) -> str:
    """The text with a space for each character that is not printable, because XML allows few control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
