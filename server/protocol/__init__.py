"""The API contract: request models, what is refused, response shapes, errors.

In: a body's bytes, or what an answer consists of. Out: a checked request, JSON, or an error with its
status. Knows no connection and no model.
"""
