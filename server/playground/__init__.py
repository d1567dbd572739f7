"""The playground: pages for a browser, in which models are tried, compared and looked into.

In: the static files beside this module, once at start. Out: the routes of the page and its files. Knows nothing of
models and requests, and must never hold what a page could ask the API for: pages use the API as any other client does.
"""
