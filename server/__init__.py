"""The Headrace server: text, HTTP, the API contract and the fleet of engine processes."""
