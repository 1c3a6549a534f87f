"""From a prompt to an answer: sampling, stop strings, the token loop."""
