"""The JSON schema of the settings, for editors, errors and the help."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from mnist_dist.config.schema import Config


class UntitledJsonSchema(GenerateJsonSchema):
    """JSON schema without the titles that pydantic derives from field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe, for editors, errors and the help."""
    schema = Config.model_json_schema(schema_generator=UntitledJsonSchema)
    schema["description"] = schema["description"].partition("\n")[0]  # without the example for Python
    return {"$schema": UntitledJsonSchema.schema_dialect, **schema}
