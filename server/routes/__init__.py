"""The routes: what each address takes and gives.

In: a request that has passed the edge. Out: its answer, whole or streamed; `answering` is what all routes that generate
share. Knows no template and no process: it asks prompt, answer and fleet.
"""
