"""The models: loading transformers' own classes, and the surgery that makes them fast.

In: a directory of safetensors. Out: a model that reads and writes our blocks, checked against itself. Knows nothing of
requests, or of what a step is for.
"""
