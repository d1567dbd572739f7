"""Images of a conversation: where they may come from, and how their bytes get here.

In: what stands in `image_url` of a message. Out: bytes that somebody sent or published as an image. Knows nothing of
prompts, models or engines. A URL is another person's input twice over, once as a text and once as what it leads to.
"""
