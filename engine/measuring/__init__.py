"""What a device does at best, and what a step costs the host beside the model: programs of `headrace bench`.

In: a device, or numbers of sequences. Out: one JSON object on standard output. Each is started as a process of its own,
since it needs torch, and whoever asks must not. Knows nothing of servers.
"""
