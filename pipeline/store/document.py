"""JSON documents as typed values: the one place where what a file says is checked against the types of the code.

A document is a JSON object whose field "schema" is the version of its format.
"""

import json
from typing import Any, NoReturn, TypeVar

import msgspec

Value = TypeVar("Value")


class OtherSchema(ValueError):
    """A document has another schema than this version of Topcoat reads; `schema` is what it has."""

    def __init__(self, schema: object, known: int) -> None:
        super().__init__(f"its schema is {schema!r:.40}, not {known}")
        self.schema = schema


def decode(data: bytes | str, kind: type[Value], schema: int) -> Value:
    """The value that a document of this schema holds: see `content` and `convert`, and their errors."""
    return convert(content(data, schema), kind)


def content(data: bytes | str, schema: int) -> dict[str, Any]:
    """The fields of a document of this schema, unchecked. Raises OtherSchema, or ValueError if it is no document."""
    try:
        found = json.loads(data, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict) or "schema" not in found:
        raise ValueError("it is no JSON object with a schema")
    if found["schema"] != schema:
        raise OtherSchema(found["schema"], schema)
    return found


def convert(fields: object, kind: type[Value]) -> Value:
    """Make decoded JSON a value of `kind`, such as a dataclass; fields that `kind` does not have are left out.

    Lists become tuples where `kind` says so, and integers floats; nothing else is changed. Raises ValueError, which
    says in one clause what is wrong and where, if a field is missing or of another type.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"a field is missing or wrong: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
