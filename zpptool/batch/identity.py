# SPDX-License-Identifier: Apache-2.0
"""What a run is begun with. Pure.

A run continues with the same only: a mixture of two models' answers would look whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.errors import ZppError, invalid_error

Identity = Mapping[str, str]
"""Values by what they are called in messages: `model`, `plan`, `input`. Empty for what was not set."""
_SHOWN = 80


def refuse_other(output: str, begun: Identity, now: Identity) -> None:
    """Refuse to continue a run with something else than it was begun with.

    Args:
        output: the output, for the message.
        begun: what the run was begun with.
        now: what it would be continued with.

    Raises:
        ZppError: (INVALID) they differ; every difference is named.
    """
    names = [name for name in {**begun, **now} if begun.get(name, "") != now.get(name, "")]
    if names:
        raise other_than_begun(output, [(name, begun.get(name, ""), now.get(name, "")) for name in names])


def other_than_begun(output: str, differences: list[tuple[str, str, str]]) -> ZppError:
    """The error for a run that would be continued with something else: name, value then, value now."""
    listed = "; ".join(f"another {name} ({_shown(then)} then, {_shown(now)} now)" for name, then, now in differences)
    return invalid_error(
        f"{output} was begun with {listed}", "Use what it was begun with, another output, or --restart to begin anew."
    )


def _shown(value: str) -> str:
    if not value:
        return "none"
    return value if len(value) <= _SHOWN else f"{value[: _SHOWN - 3]}..."
