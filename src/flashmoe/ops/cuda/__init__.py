"""The CUDA backend: torch tensors, Triton kernels. Nothing here is imported unless it is asked for."""
