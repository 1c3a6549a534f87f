"""A conversation with a model in the terminal (docs/chat.md)."""
