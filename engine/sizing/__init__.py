"""What a model takes of a device's memory, by arithmetic alone: weights, steps, recorded steps, images, the KV cache;
of one rank's part as well as of the whole; and how fast it can be there at most.

In: a configuration, settings, bytes and rates of a device. Out: bytes, tokens, the sizes of steps, and limits. Needs no
torch to be imported; the engine sizes itself by the same numbers. Knows nothing of a model's code, nor of a device that
is there.
"""
