"""The description of the API, as GET /openapi.json gives it.

In: the routes and the contract's models. Out: an OpenAPI document with examples. Knows no request and no
model, and never says by hand what the contract can say.
"""
