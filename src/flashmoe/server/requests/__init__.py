"""Bodies of requests, as pydantic models: wrong types are refused, unknown fields ignored."""
