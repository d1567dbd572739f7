"""From logits to tokens.

In: logits of the rows that sample, and their sequences' parameters. Out: a token for each, with log-probabilities where
they are asked for. A row's draw depends on nothing but its seed, its position and its logits.
"""
