"""The quick way through a decoder model: each half of a layer is one step with its gradient written out beside it.

Same weights, same results to rounding as transformers' own modules, with less traffic, fewer launches and known memory. What it
cannot serve (see read.py) goes through transformers' modules instead. CUDA runs Triton kernels; elsewhere the formulas beside them
run as they stand, which is how they are tested.
"""
