"""Every tolerance of the tests, each with its reason. None is raised to make a test pass."""

from __future__ import annotations

# A float32 sum of n products against float64, relative to the sum of their magnitudes. Each product
# passes through few additions (blocked sums) or n (one running sum, at most 2048 here): rounding is
# 6e-8 per step and errors of random sign grow as sqrt(n).
DOT = 4e-6

# silu * up in float32: exp to 2 ulp, then three roundings of half an ulp (6e-8) each.
SILU = 5e-7

# The clamped SwiGLU in float32: as SILU, and the rounding of 1.702 * gate (half an ulp of up to 12:
# 5e-7) enters exp, then that of the division by 1.702.
CLAMPED = 2e-6

# Where both sides round the same hidden value to int8, a last-bit difference before rounding can
# move a code by one. A row of the tests' sizes has at most a few hundred codes and a last-bit
# difference flips one in about 1e4, so that two flips in one row are already rare.
HIDDEN_CODE_FLIPS = 2

# Logits of a bf16 pack against transformers in float32 on the same weights: both round in float32,
# in another order, through every layer. The project's promise; what is measured is about 1e-5.
LOGITS_ORACLE = 2e-3

# Prefill in one piece, in chunks and token by token: only the gated delta rule changes its order of
# arithmetic with the cut. The project's promise; what is measured is about 1e-6.
LOGITS_CHUNKED = 1e-4

# A row operation in float32 (norm, gate, rope, convolution) against float64, relative to the
# largest result: about ten roundings (6e-8 each), exp to 2 ulp, and a blocked sum of squares.
ROW = 2e-6

# Sigmoid at |x| near 100 in float32 against float64, relative: the half ulp (4e-6) of an argument
# of that size becomes a relative error of the exponential.
SIGMOID_TAIL = 1e-5

# Softmax attention in float32 against float64, relative to the largest value: scores are sums of D
# <= 256 products whose error (about 1e-6 at |score| <= 8) enters exp, then sums over the context.
ATTENTION = 2e-5

# The same with scores near 1e4: their own rounding (1e-3) enters exp.
ATTENTION_LARGE_SCORES = 5e-3

# The gated delta rule in float32 against float64, relative to the largest output: each token adds
# a few roundings to a state that the rule itself contracts; the chunked form sums in another order.
DELTA = 1e-5

# Softmax weights in float32 against float64, relative: exp to 2 ulp, a sum of at most 513 terms.
SOFTMAX = 2e-6

# Log-probabilities: the terms of the sum are float32 powers; a power is off by its rounding (6e-8)
# and by that of its exponent, up to 20 in these tests (20 * 2**-24 = 1.2e-6).
LOGPROB_ATOL = 2e-6

# float64 against float64: a few hundred roundings of 1e-16.
EXACT = 1e-12

# Where one side rounds an input or an intermediate to float32 (half an ulp: 6e-8), a few times.
ROUNDED = 1e-6

# The eps of the delta rule's key norm, against a key of squared length near 8 without it.
NORM_EPS = 1e-5

# Logits of a whole bf16 model on float32 kernels against the NumPy backend, float64 inside each
# op: the same rounding as against the oracle. Measured: 1e-6, with the delta rule up to 8e-5.
LOGITS_REFERENCE = 5e-4

# The same with q8 or q4 weights, where both sides round inputs to int8: about one code in 1e5 falls
# the other way: a value changes by 1/127 of its group's largest, and all that follows sees it.
# Measured on the tiny models (logits of size 1 to 2), one such code early in 70 tokens: 0.2.
LOGITS_FLIPPED = 0.5

# In most prompts of a few tokens no code falls the other way. Measured: 2e-6.
LOGITS_UNFLIPPED = 1e-4

# Mean NLL of a window against transformers on the same weights: errors of single logits (1e-5) have
# random signs and average out.
NLL_ORACLE = 1e-4

# Mean NLL of 40 windows against the frozen figure. The project's promise.
NLL_FROZEN = 2e-3

# Spread of quantised normal weights beside the one that was asked for: Q4_0 adds about 2 % of
# noise, and the slices of a tiny tensor are samples of a few thousand.
QUANTIZED_SPREAD = 0.1

# Difference between the shares of picks that experts were to get and got from some hundred random
# tokens of a model with 32 experts: three standard deviations of the counts, and rounded weights.
ROUTING_SHARE = 0.05
# Kernels on a card, relative to the largest result. Row operations and products in float32: sums
# of a few hundred terms in tree order.
CUDA_ROW = 2e-6

# Products of few rows with q4 weights: four inputs share a step of 1/32512 of their largest, so
# that each is off by up to 1.5e-5 of it; errors of random sign add up as the products do. Experts
# do it twice.
CUDA_FIXED_POINT = 1.5e-4

# Products on tensor cores with float16 inputs and weights (11 bits each: 5e-4), sums in float32.
CUDA_HALF = 1.5e-3

# The same with bfloat16 weights, exact, and inputs of two bfloat16 parts (16 bits: 1e-5 each).
CUDA_BF16 = 5e-5

# Attention in float32 over normed and rotated rows: a score of up to 8 in these tests is off by
# five roundings (3e-7) of query and of key each, and the absolute error of a score (5e-6) becomes
# the relative one of its weight. CUDA_ROW is for the rows themselves. Measured: 2.02e-6.
CUDA_ATTENTION_F32 = 5e-6

# Attention over float16 keys and values: they, queries and weights have 11 bits.
CUDA_ATTENTION_F16 = 2e-3

# Logits on a card against the NumPy backend with the same rounding (tests/test_cuda_model.py):
# what differs is what that leaves out. Attention has queries and weights of 11 bits, routed rows in
# decode inputs of 16 bits, the shared expert is rounded before its gate and not after: each is a
# few 1e-4 of its own result, and the tiny models (logits of 2 to 5) pass every error on. bf16
# weights meet inputs of 16 bits in prefill.
LOGITS_CUDA = {"bf16": 5e-3, "quantised": 0.03}

# The same where the CPU has computed some of the experts of a step: it rounds their inputs to 8
# bits, 4e-3 of the largest of a group, twice per expert.
LOGITS_HYBRID = 0.1

# gelu(gate) * up where gelu is below 4e-3, far left of zero: there the exponent of its sigmoid, up
# to 20, is off by its rounding (1e-6), and the rest of the result's relative error by as much.
GELU_TAIL = 1e-8
KEPT_LOGITS = 0.03
"""A quantised source kept as it is against its weights in bf16: rounding of weights (2^-9) and, for
q4, of activations to 8 bits, over one layer; a wrong scale or nibble order is off by 1."""

# Log probabilities of a reference are kept as float32: an error of 1e-6 in each of about 10, summed
# with their probabilities into a divergence of order 1.
KL_KEPT = 1e-5

# Hyper-connections: sums of a hundred float32 products, through gates with a slope below 1 and
# twenty normalisations that keep relative errors.
STREAMS = 2e-5
# Forecasts of `flashmoe plan` against recorded runs, relative: rates of disk and memory vary by a
# tenth from second to second, and what formulas leave out comes on top (docs/plan.md).
FORECAST_ERROR = 0.2
# The embedded model is so small that its speed is all waiting: readers, threads, Python.
FORECAST_ERROR_OF_A_TOY = 0.5
# Hit rates, absolute: the curve has one exponent per trace (largest residual 0.02), and models it
# was not fitted to have routing of their own (largest difference of the demo model 0.06).
HIT_RATE_FIT = 0.025
HIT_RATE_OF_ANOTHER_MODEL = 0.065
# Probabilities of a trace sum to 1 but for float32 rounding of at most 512 of them.
TRACE_SUM_ATOL = 1e-5

# Mean squared error of codebooks on normal weights of variance 1. The least that 4, 8, 16 and 32
# levels can reach (Max 1960): 0.1175, 0.0345, 0.0095 and 0.0025 with one scale for all. q2 and q3
# lose up to a third more to the scale of a group, which comes from its largest magnitude; the
# levels of q4n and q5 were fitted to weights over such scales and reach less than Max.
NORMAL_WEIGHTS = {"q2": 0.14, "q3": 0.045, "q4n": 0.009, "q5": 0.0024}
