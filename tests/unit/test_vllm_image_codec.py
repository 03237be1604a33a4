# SPDX-License-Identifier: Apache-2.0
"""Requests with images travel without pickle: they are decoded as they were encoded, and anything else is refused."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from sameness import differences  # noqa: E402
from vllm.multimodal.inputs import (  # noqa: E402
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)
from vllm.v1.core.sched.output import NewRequestData  # noqa: E402

from zpptool.engines.vllm import codec  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402


def element(data: object, field: object | None = None) -> MultiModalFieldElem:
    return MultiModalFieldElem(data=data, field=field or MultiModalBatchedField())


def item(**more: MultiModalFieldElem) -> MultiModalKwargsItem:
    flat = MultiModalFlatField(slices=[slice(0, 4), slice(4, None, 2)], dim=-1, keep_on_cpu=True)
    return MultiModalKwargsItem(
        {
            "pixel_values": element(torch.randn(3, 8, 8, dtype=torch.bfloat16)),
            "image_grid_thw": element(torch.tensor([1, 2, 2]), flat),
            "patches": element([torch.randn(2, 3), torch.randn(5, 3)], MultiModalSharedField(batch_size=2)),
            **more,
        }
    )


def request(data: MultiModalKwargsItem | None) -> NewRequestData:
    mask = torch.tensor([True, False, True])
    features = [
        MultiModalFeatureSpec(data, "image", "id", PlaceholderRange(1, 3, mask), mm_hash="hash"),
        MultiModalFeatureSpec(None, "video", "other", PlaceholderRange(5, 4)),
    ]
    return NewRequestData("r", list(range(9)), features, None, None, ([1],), 0, None)


def test_a_request_with_images_is_unchanged() -> None:
    sent = request(item())
    received = codec.decode(codec.encode(sent))
    assert differences(dataclasses.replace(sent, mm_features=[]), dataclasses.replace(received, mm_features=[])) == []
    for one, other in zip(sent.mm_features, received.mm_features, strict=True):
        assert differences(dataclasses.replace(one, data=None), dataclasses.replace(other, data=None)) == []
    ours, theirs = received.mm_features[0].data, sent.mm_features[0].data
    assert type(ours) is MultiModalKwargsItem
    assert list(ours) == list(theirs)
    for name, element in theirs.items():
        assert differences(element, ours[name]) == []
    assert received.mm_features[0].mm_position.get_num_embeds() == 2


def test_what_a_model_takes_of_an_image_is_refused_by_name_where_it_is_no_tensor() -> None:
    with pytest.raises(ZppError, match=r"MultiModalFieldElem.data holds a builtins.complex, which is not carried"):
        codec.encode(request(item(odd=element(1j))))


def test_a_field_of_another_kind_is_refused_by_name() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NewField(MultiModalBatchedField):
        pass

    with pytest.raises(ZppError, match=r"MultiModalFieldElem.field holds a .*NewField, which is not carried"):
        codec.encode(request(item(odd=element(None, NewField()))))


@pytest.mark.parametrize("elements", [{"a": 1}, {1: element(None)}, [element(None)]])
def test_an_item_of_something_else_than_elements_is_refused(elements: object) -> None:
    forged = MultiModalKwargsItem()
    forged.data = elements  # type: ignore[assignment]
    with pytest.raises(ZppError):
        codec.decode(codec.encode(forged))


def test_a_slice_is_one_of_integers() -> None:
    """vLLM makes slices of tensors with one integer too."""
    made = slice(torch.tensor(2), torch.tensor(5), None)
    assert codec.decode(codec.encode([made, slice(None, -1, 2)])) == [slice(2, 5), slice(None, -1, 2)]


def test_a_slice_of_something_else_than_integers_is_refused() -> None:
    with pytest.raises(ZppError, match="holds a slice of 'a', which is not carried"):
        codec.encode(slice("a", "b"))
    forged = codec.encode(slice(1, 2)).replace(b"\x93\x01\x02\xc0", b"\x93\x01\xa0\xc0")
    with pytest.raises(ZppError, match="a slice of something else"):
        codec.decode(forged)
