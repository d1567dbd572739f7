"""How models write calls and thoughts between their words.

In: text that a model wrote, in pieces. Out: events of content, reasoning and calls; and, the other way, the grammars
and the words that make a model write so. Knows neither requests nor tokens.
"""
