# SPDX-License-Identifier: Apache-2.0
"""Stages of different kinds of layers agree on what all of them can have."""

from __future__ import annotations

from zpptool.engines.vllm.core.kv_layout import common_layouts

ANY = ["LBNHC", "LBHNC", "BLNHC", "BLHNC"]


def test_a_stage_that_can_have_any_layout_takes_its_neighbours() -> None:
    assert common_layouts([ANY, ["LBHNC"]]) == [["LBHNC"], ["LBHNC"]]
    assert common_layouts([["BLHNC", "LBNHC"], ANY, ANY]) == [["BLHNC", "LBNHC"]] * 3


def test_stages_that_agree_are_left_alone() -> None:
    assert common_layouts([ANY, ANY]) == [ANY, ANY]
    assert common_layouts([]) == []


def test_stages_with_nothing_in_common_say_so_themselves() -> None:
    assert common_layouts([["LBNHC"], ["LBHNC"]]) == [["LBNHC"], ["LBHNC"]]
