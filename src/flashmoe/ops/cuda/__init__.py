"""The CUDA backend: torch tensors, Triton kernels. Imported only where it is asked for."""
