"""The API contract: request models, what is refused, response shapes. Knows no HTTP and no model."""
