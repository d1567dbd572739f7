"""Answers without a server: from Python, and of files.

In: conversations and prompts, or files of requests in OpenAI's batch format. Out: answers. What answers is the server's
own application, called in this process, so that whatever a request may say means the same as over HTTP. Knows nothing
of sockets, keys or terminals.
"""
