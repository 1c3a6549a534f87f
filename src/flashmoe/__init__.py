"""flashmoe: Mixture-of-Experts language models far larger than memory."""

__version__ = "0.1.0"
