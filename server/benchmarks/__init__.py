"""What a server and its engine do, measured: `headrace bench`.

In: an address of a server, or a model, and what load it is put under. Out: figures as a table, as JSON, and as a page
with plots. Asks servers over HTTP alone, so that any is measured as ours is, and engines as the server does, in a
process of their own. Knows nothing of how requests are answered.
"""
