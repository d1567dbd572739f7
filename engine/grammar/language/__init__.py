"""Regular languages: what a pattern finds, its complement, and intersections."""
