"""Other people's conformance suites against this server; `make compat` runs them."""
