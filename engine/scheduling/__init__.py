"""Which tokens of which sequence are computed next, in which blocks; and when one ends.

In: requests, and the tokens that steps gave. Out: the rows of the next step, and outputs. Knows no
tensor, so that all of it is tested in milliseconds.
"""
