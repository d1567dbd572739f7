"""Where the memory is, and what one step's tensors are.

In: a configuration, and the rows of a step. Out: the device, its KV cache, and a `ForwardBatch`. Knows neither models
nor why these rows were chosen.
"""
