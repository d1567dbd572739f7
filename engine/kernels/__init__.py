"""The kernels: C for processors, Triton for GPUs, and what both compute in plain torch.

In: tensors. Out: tensors. Knows neither models nor steps.
"""
