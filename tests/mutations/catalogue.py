# SPDX-License-Identifier: Apache-2.0
"""All faults, by name."""

from __future__ import annotations

from itertools import chain

from tests.mutations import in_layers, in_positions, in_state, in_tokens, in_weights, in_wire
from tests.mutations.mutation import Mutation

CATALOGUE: tuple[Mutation, ...] = tuple(
    chain.from_iterable(
        module.mutations() for module in (in_weights, in_layers, in_positions, in_state, in_wire, in_tokens)
    )
)
BY_NAME = {mutation.name: mutation for mutation in CATALOGUE}
KINDS = sorted({(mutation.group, mutation.kind) for mutation in CATALOGUE})
