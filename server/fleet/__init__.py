"""The engine processes: one for each model, started, watched, restarted and ended.

In: what to serve. Out: `EngineHandle`s, each with a client, a tokenizer and a state that tells the truth. Knows nothing
of requests or of HTTP.
"""
