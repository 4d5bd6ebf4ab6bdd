"""The Triton backend: kernels that compute a layer block by block. See `kernels/DESIGN.md`."""
