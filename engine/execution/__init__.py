"""One step on the device: running the model, sampling, and what is in flight between the two.

In: the rows that the scheduler chose. Out: their tokens and log-probabilities. Never decides which rows, and knows
nothing of requests.
"""
