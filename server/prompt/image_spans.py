"""The tokens that stand for images: one where the template showed each, as many as each has in the end.

Text from outside cannot hold the placeholder: it is a control token, and broken as any other. So every placeholder in
an encoded prompt is the template's, and they are bound to the images in order.
"""

from dataclasses import dataclass

from server.protocol.errors import bad_request, unsupported


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """The images of a prompt for one model: `counts` tokens of the id `token_id` stand for each."""

    token_id: int
    counts: tuple[int, ...]


def expand(ids: list[int], images: ImageTokens | None, refs: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The prompt with all its image tokens, and where each image's begin and how many there are.

    `refs` is how many images the conversation has. Raises `ApiError` 400 where the template showed another number.
    """
    if images is None:
        if refs:
            raise unsupported("messages", "This model takes no images")
        return ids, []
    shown = ids.count(images.token_id)
    if shown != refs:
        raise bad_request(
            f"The model's chat template shows {shown} of the {refs} images of the conversation in their places",
            param="messages",
        )
    assert len(images.counts) == refs
    found: list[int] = []
    spans: list[tuple[int, int]] = []
    counts = iter(images.counts)
    for token_id in ids:
        if token_id == images.token_id:
            count = next(counts)
            spans.append((len(found), count))
            found += [token_id] * count
        else:
            found.append(token_id)
    return found, spans
