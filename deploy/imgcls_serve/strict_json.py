"""JSON as its specification has it, without NaN and Infinity: most readers refuse these."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from imgcls_infer.errors import ModelError
from starlette.responses import JSONResponse


def strict_json(document: Any, **layout: Any) -> str:
    """layout: of json.JSONEncoder. Raises ModelError: numbers that are not finite can only come from the model."""
    try:
        return _encoder(**layout).encode(document)
    except ValueError as error:
        raise ModelError("the model's answer has numbers that are not finite; export it again") from error


@cache
def _encoder(**layout: Any) -> json.JSONEncoder:
    return json.JSONEncoder(allow_nan=False, **layout)


class StrictJSONResponse(JSONResponse):
    """A JSON response without NaN and Infinity."""

    def render(self, content: Any) -> bytes:
        """The body. Raises ModelError, as strict_json does."""
        return strict_json(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
