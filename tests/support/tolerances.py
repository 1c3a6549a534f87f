"""Every tolerance of the tests, each with its reason. None is raised to pass a test."""

# Log-probabilities: one float64 log-sum-exp over float32 logits of size 20, here and in the test.
LOGPROB_ATOL = 1e-12
