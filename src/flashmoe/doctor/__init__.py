"""What of this machine matters for streaming experts, and what to do about it."""
