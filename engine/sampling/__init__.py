"""From logits to tokens.

In: logits of the rows that sample, and their sequences' parameters. Out: a token for each, with log-probabilities where
they are asked for. Knows nothing of neighbours: a row's draw follows from its own sequence and its logits
alone.
"""
