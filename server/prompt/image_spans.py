"""The tokens that stand for images: one where the template showed each, as many as each has in the end.

Text from outside cannot hold them: they are control tokens, and broken as any other. So every such token in an encoded
prompt is the template's, and they are bound to the images in order.
"""

from dataclasses import dataclass

from engine.messages import ImageInfo
from server.protocol.errors import bad_request, unsupported


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """The images of a prompt for one model."""

    info: ImageInfo
    token_ids: tuple[list[int], ...]
    """What stands for each."""


def expand(ids: list[int], images: ImageTokens | None, refs: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The prompt with all its image tokens, and where the placeholders of each image begin, and how many tokens reach
    to the last of them.

    `refs` is how many images the conversation has. Raises `ApiError` 400 where the template showed another number.
    """
    if images is None:
        if refs:
            raise unsupported("messages", "This model takes no images")
        return ids, []
    shown = ids.count(images.info.shown_id)
    if shown != refs:
        raise bad_request(
            f"The model's chat template shows {shown} of the {refs} images of the conversation in their places",
            param="messages",
        )
    assert len(images.token_ids) == refs
    placeholder = images.info.token_id
    found: list[int] = []
    spans: list[tuple[int, int]] = []
    left = iter(images.token_ids)
    for token_id in ids:
        if token_id == images.info.shown_id:
            image = next(left)
            first, behind = image.index(placeholder), len(image) - image[::-1].index(placeholder)
            spans.append((len(found) + first, behind - first))
            found += image
        else:
            found.append(token_id)
    return found, spans
