"""A model's reply taken apart while it is written: reasoning, content, tool calls."""
