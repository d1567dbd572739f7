"""What is told of the server's work to those who run it: what is counted, and what the log and traces say of a request.

In: durations, counts and ends of requests as they are served. Out: histograms, lines of the log, spans of traces. Knows
nothing of HTTP, routes, models or processes, and never a prompt, an answer or a key.
"""
