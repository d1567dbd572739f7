"""Attention over blocks, in several backends behind one interface.

In: queries, keys and values of packed tokens. Out: what they attend to; keys and values are in the cache then. Knows no
architecture: transformers calls it by name.
"""
