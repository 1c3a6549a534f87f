"""Programmatic dependent launch: a kernel begins while the one before it still runs.

What does not depend on earlier kernels (stored weights) is loaded before `wait_for_earlier`;
nothing else may be read or written before it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_earlier(PDL: tl.constexpr):
    """Let the next kernel begin, then wait until the ones before have ended."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
