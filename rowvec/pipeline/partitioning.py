"""How a vector table is split into partitions: ``target.partition_by`` of a pipeline file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rowvec.pipeline.parts import Part, Text

PARTITION_KINDS = ("list", "hash")


class PartitionBy(Part):
    """The partitions of the vector table."""

    columns: tuple[Text, ...] = Field(min_length=1, description="Columns of source.key; list takes one column.")
    kind: Literal["list", "hash"] = Field(
        default="list",
        description="list: one partition per value, made by the merge that brings its first row. hash: a fixed number "
        "of partitions, each for many values.",
    )
    partitions: int | None = Field(default=None, ge=2, le=1000, description="How many partitions; for hash only.")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> PartitionBy:
        if self.kind == "list" and len(self.columns) > 1:
            raise ValueError("list takes one column, and Postgres allows no more; for several columns set kind to hash")
        if self.kind == "list" and self.partitions is not None:
            raise ValueError("partitions is for kind hash; a list has one partition per value, so leave it out")
        if self.kind == "hash" and self.partitions is None:
            raise ValueError("kind is hash, and partitions is missing: write how many there should be, such as 32")
        return self


def _whole_form(given: Any) -> Any:
    """The short form ``[tenant]`` is a list partition by this column."""
    return {"columns": given} if isinstance(given, (list, tuple)) else given


ShortOrWhole = Annotated[PartitionBy, BeforeValidator(_whole_form, json_schema_input_type=list[Text] | PartitionBy)]
"""``partition_by`` in either of its two forms."""
