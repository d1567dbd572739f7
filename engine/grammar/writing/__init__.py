"""Rewritten schemas as text of grammars, exact to the digit and to the letter."""
