"""JSON schemas said in the keywords that are followed exactly."""
