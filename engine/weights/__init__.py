"""Finding, downloading and converting weights.

In: a source as models.yaml names it. Out: a directory of safetensors with configuration and tokenizer. Needs no torch
to be imported, and knows nothing of running a model.
"""
