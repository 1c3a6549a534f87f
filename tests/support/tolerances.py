"""Every tolerance of the tests, each with its reason. None is raised to pass a test."""

# Log-probabilities: the terms of the sum are float32 powers; a power is off by its rounding (6e-8)
# and by that of its exponent, up to 20 in these tests (20 * 2**-24 = 1.2e-6).
LOGPROB_ATOL = 2e-6
