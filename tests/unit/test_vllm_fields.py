# SPDX-License-Identifier: Apache-2.0
"""Whatever vLLM keeps of a request is known to survive the loss of a stage, or to need nothing for it.

When this fails after an update of vLLM: see what the new field does in a stage (`vllm/v1/worker`), ask for it in
`tests/requestfields.py`, and run `tests/integration/test_vllm_request_fields.py`.
"""

from __future__ import annotations

import dataclasses

import pytest
from requestfields import EMBEDS, EXERCISED, LATE_WISHES, NEEDLESS, POOLED, WISHES

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import msgspec  # noqa: E402
from vllm.pooling_params import PoolingParams  # noqa: E402
from vllm.sampling_params import SamplingParams, StructuredOutputsParams  # noqa: E402
from vllm.v1.core.sched.output import NewRequestData  # noqa: E402
from vllm.v1.engine import EngineCoreRequest  # noqa: E402
from vllm.v1.worker.gpu_input_batch import CachedRequestState  # noqa: E402

KINDS = (
    SamplingParams, StructuredOutputsParams, PoolingParams, EngineCoreRequest, NewRequestData, CachedRequestState,
)  # fmt: skip


def field_names(kind: type) -> set[str]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else msgspec.structs.fields(kind)
    return {one.name for one in fields}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_exercised_or_needs_no_exercise(kind: type) -> None:
    exercised, needless = EXERCISED[kind.__name__].keys(), NEEDLESS[kind.__name__].keys()
    assert not exercised & needless
    assert exercised | needless == field_names(kind)


def test_the_tables_are_of_these_classes_and_wishes() -> None:
    assert EXERCISED.keys() == NEEDLESS.keys() == {kind.__name__ for kind in KINDS}
    named = {name for fields in EXERCISED.values() for names in fields.values() for name in names}
    assert named == {*WISHES, *LATE_WISHES, *POOLED, EMBEDS}
