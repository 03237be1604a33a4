# SPDX-License-Identifier: Apache-2.0
"""What every request of the HTTP API has in common, and how one is read from JSON.

A field either has its effect or is refused by name; no field that would change the answer is ignored. As with OpenAI,
null is the same as an absent field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.messages import without_empty_fields

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "suffix": ("",), "prompt_logprobs": (),
    "response_format": ({"type": "text"},), "structured_outputs": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],),
    "use_beam_search": (False,), "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (),
    "chat_template": (), "length_penalty": (1,), "priority": (0,),
}  # fmt: skip
"""The fields of features that this engine does not support, and for each the values that do not request the feature."""

IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
        "cache_salt", "include_reasoning",
    }
)  # fmt: skip
"""Fields that do not affect an answer."""


class Strict(BaseModel):
    """A request: its fields are of their own type, and there are no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED

    model: str | None = None

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""


_Request = TypeVar("_Request", bound=Strict)


def parse(kind: type[_Request], body: Any) -> _Request:
    """A request from the decoded JSON of its body.

    Raises:
        BadRequest: the body is not such a request; the message names the first field at fault.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in (kind.unsupported.keys() & given.keys()) - kind.model_fields.keys():
        value = given.pop(name)
        if not any(_same(value, neutral) for neutral in kind.unsupported[name]):
            raise BadRequest(f"{name}: not supported by this engine", name)
    if "messages" in given:
        given["messages"] = without_empty_fields(given["messages"])
    try:
        request = kind.model_validate(given)
    except ValidationError as cause:
        raise _refusal(cause) from cause
    request.check()
    return request


def _refusal(cause: ValidationError) -> BadRequest:
    fault = cause.errors(include_url=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else None
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return BadRequest(f"{field}: not known to this engine", field)
    return BadRequest(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", field)


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one type if one of them is a boolean: `best_of` 1 requests nothing, true is refused."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
