"""What a model takes of a device's memory, by arithmetic alone: weights, steps, recorded steps, the KV cache.

In: a configuration, settings, bytes of a device. Out: bytes, tokens and the sizes of steps. Needs no torch to be
imported; the engine sizes itself by the same numbers. Knows nothing of a model's code, nor of a device that is there.
"""
