"""Text in and out: tokenizer, chat template, stop tokens, streaming detokeniser."""
