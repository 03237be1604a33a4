# SPDX-License-Identifier: Apache-2.0
"""A trial's outcome for programs: the JSON keys that scripts use, and well-formed JUnit XML."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import stage_error
from zpptool.net.openai_client import Generation
from zpptool.parity.compare import PromptParity
from zpptool.parity.report import error_payload, junit, payload

SPECS = tuple(
    StageSpec(Engine.VLLM, f"/stages/stage_{stage}", ((0, 2), (2, 5)), stage, f"tcp://127.0.0.1:{9000 + stage}", "")
    for stage in range(2)
)
any_text = st.text(st.characters(), max_size=80)


def result(prompt: str, expected: tuple[int, ...], got: tuple[int, ...]) -> PromptParity:
    return PromptParity(prompt, 3, Generation(expected, "unsplit"), Generation(got, "pipeline"))


def test_the_json_has_the_documented_keys() -> None:
    outcome = payload(SPECS, [result("one", (1, 2), (1, 2)), result("two", (1, 2), (1, 3))], 1.26)
    assert json.loads(json.dumps(outcome)) == {
        "verdict": "different",
        "engine": "vllm",
        "num_stages": 2,
        "stages": [
            {"stage": 0, "layers": [0, 2], "model": "/stages/stage_0", "bind": "tcp://127.0.0.1:9000"},
            {"stage": 1, "layers": [2, 5], "model": "/stages/stage_1", "bind": "tcp://127.0.0.1:9001"},
        ],
        "seconds": 1.3,
        "prompts": [
            {
                "prompt": prompt, "prompt_tokens": 3, "text": "pipeline", "reference_text": "unsplit",
                "token_ids": got, "reference_token_ids": [1, 2], "identical": identical, "first_difference": index,
            }
            for prompt, got, identical, index in (("one", [1, 2], True, None), ("two", [1, 3], False, 1))
        ],
    }  # fmt: skip


def test_a_failed_trial_has_the_same_keys() -> None:
    fault = stage_error("stage 1 was killed by SIGKILL", "See its log.")
    outcome = json.loads(json.dumps(error_payload(Engine.VLLM, 2, fault)))
    assert outcome["verdict"] == "error"
    assert (outcome["engine"], outcome["num_stages"], outcome["prompts"]) == ("vllm", 2, [])
    assert outcome["error"] == {"message": "stage 1 was killed by SIGKILL", "hint": "See its log.", "exit_code": 6}


@given(st.lists(st.tuples(any_text, st.booleans()), max_size=4))
def test_junit_is_well_formed_and_counts_any_prompts(prompts: list[tuple[str, bool]]) -> None:
    results = [result(text, (1, 2), (1, 2) if same else (1, 4)) for text, same in prompts]
    suite = ElementTree.fromstring(junit(payload(SPECS, results, 1.0)).encode())
    cases = suite.findall("testcase")
    errors = 0 if prompts else 1
    assert int(suite.attrib["tests"]) == len(cases) == len(prompts) + errors
    assert int(suite.attrib["errors"]) == len(suite.findall("testcase/error")) == errors
    assert [case.find("failure") is None for case in cases[: len(prompts)]] == [same for _, same in prompts]
    assert int(suite.attrib["failures"]) == sum(not same for _, same in prompts)


@given(any_text)
def test_junit_is_well_formed_for_any_error(message: str) -> None:
    suite = ElementTree.fromstring(junit(error_payload(Engine.TRANSFORMERS, None, stage_error(message))).encode())
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("1", "0", "1")
    assert suite.find("testcase/error") is not None


def test_junit_has_both_answers_and_the_index_of_the_difference() -> None:
    suite = ElementTree.fromstring(junit(payload(SPECS, [result("a prompt", (1, 2), (1, 3))], 1.0)))
    case = suite.find("testcase")
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    assert case.attrib["name"] == "prompt 0: a prompt"
    assert case.attrib["classname"] == "vllm.2-stages"
    assert "token is number 1" in failure.attrib["message"]
    assert "[1, 2]" in (failure.text or "")
    assert "[1, 3]" in (failure.text or "")
