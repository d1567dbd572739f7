"""The command line: `headrace serve`, `headrace models`, and what an operator reads on the terminal.

In: arguments, models.yaml, signals. Out: a running server, messages, exit codes. Knows nothing of what a request holds.
"""
