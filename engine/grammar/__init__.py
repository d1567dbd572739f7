"""What constrained answers may say: compiling, following, masking.

In: a schema, an expression or a grammar, and a vocabulary. Out: a `Grammar` that says which tokens may come, or a
refusal that names the place. Knows neither sequences nor requests. What cannot be followed exactly is refused.
"""
