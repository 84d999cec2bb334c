"""The pipeline file: what is embedded, how, and where it goes."""

from rowvec.pipeline.model import Pipeline, json_schema

__all__ = ["Pipeline", "json_schema"]
