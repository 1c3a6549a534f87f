"""Programmatic dependent launch: a kernel begins while the one before it still runs.

What does not depend on earlier kernels (stored weights) is loaded before `wait_for_earlier`;
nothing else may be read or written before it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_earlier(PDL: tl.constexpr):
    """Wait until the kernels before have ended; PDL 0: they have."""
    if PDL == 1:
        gdc_launch_dependents()
    if PDL > 0:
        gdc_wait()
    if PDL == 2:
        gdc_launch_dependents()


@triton.jit
def let_next_begin(PDL: tl.constexpr):
    """The next kernel may begin to load what does not depend on this one."""
    if PDL == 3:
        gdc_launch_dependents()
