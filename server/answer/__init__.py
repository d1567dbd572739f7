"""From the token ids of an answer to what is shown of it: text, reasoning, calls, log-probabilities.

In: a plan of `server.prompt` and the engine's outputs. Out: `Delta`s. Knows nothing of connections, or of what an
answer looks like on the wire; whatever pieces the ids come in, the answer is the same.
"""
