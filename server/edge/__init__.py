"""Who may ask, how much, and how bytes come in and go out.

In: connections and requests of anybody, hostile ones too. Out: requests that are well-formed, admitted and have an id,
and streams that end when their client leaves. Knows nothing of models, or of what a prompt or an
answer says.
"""
