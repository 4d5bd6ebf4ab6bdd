"""Our kernels, blockwise, in Triton. See `kernels/DESIGN.md`."""
