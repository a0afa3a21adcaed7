"""Contact sheet: small pictures of a data set with their captions, as a model is shown them."""

import textwrap

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data import images
from jaxdiff.data.decoding import Unreadable
from jaxdiff.data.images import INK, PAPER
from jaxdiff.data.listing import Listing
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.survey import Survey, tokenizer_of
from jaxdiff.errors import expect

SIDE, LINE, FONT = 192, 13, 11
"""Pixels: the longer side of a picture, a line of its caption, and the size of the letters."""

LETTERS = 34
"""Characters in a line."""


def contact_sheet(
    pipeline: Pipeline, listing: Listing, found: Survey, count: int, columns: int = 6
) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures of some examples of all buckets, after the crop, with captions that are cut as the tokenizer cuts them.

    Other transforms and conditions of the pipeline are not applied.

    Args:
      pipeline: how images are cut and captions become ids.
      listing: the images and captions.
      found: the survey of the listing.
      count: number of pictures, at most.
      columns: pictures in a row.

    Raises:
      UserError: no image can be read, or all are left out.
    """
    chosen = _chosen(found, count)
    expect(bool(chosen), "--out", "a contact sheet", "images that are used", "see the report", "none")
    captions = [_caption(pipeline, listing, i) for i, _ in chosen]
    lines = max(caption.count("\n") + 1 for caption in captions)
    pictures = [_picture(pipeline, listing, *place) for place in chosen]
    cells = [_cell(*pair, lines) for pair in zip(pictures, captions, strict=True)]
    return images.grid(np.stack(cells), min(columns, len(cells)), scale=1)


def _chosen(found: Survey, count: int) -> list[tuple[int, int]]:
    """Positions of examples and the numbers of their buckets: the first of each bucket, then the second, and so on."""
    if found.assignment is None:
        return [(int(i), 0) for i in found.readable[:count]]
    numbers = found.assignment.bucket
    turns = [(int(np.sum(numbers[:i] == number)), int(number), i) for i, number in enumerate(numbers)]
    kept = sorted(turn for turn in turns if turn[1] >= 0)[:count]
    return sorted(((int(found.readable[i]), number) for _, number, i in kept), key=lambda pair: pair[::-1])


def _picture(pipeline: Pipeline, listing: Listing, i: int, bucket: int) -> np.ndarray:
    """The image as it is cut; nothing of one that is damaged."""
    try:
        image = listing.image(i)
    except Unreadable:
        return np.full((1, 1, 3), PAPER, np.uint8)
    if pipeline.buckets is None:
        return image
    cover = pipeline.buckets.cover(pipeline.buckets.shapes[bucket])
    return cover({"image": image, "index": np.array(i, np.int32)}, np.random.default_rng(i))["image"]


def _caption(pipeline: Pipeline, listing: Listing, i: int) -> str:
    """The name of an example, and its first caption as far as the tokenizer reads it, in lines."""
    texts, tokenizer = listing.texts(i) if listing.captioned else None, tokenizer_of(pipeline)
    text = texts[0] if texts else ""
    shown = text if tokenizer is None or not text else tokenizer.decode(tokenizer.encode(text))
    return "\n".join([listing.names[i][-LETTERS:], *textwrap.wrap(shown, LETTERS)])


def _cell(picture: np.ndarray, caption: str, lines: int) -> np.ndarray:
    """A picture on a square of `SIDE` pixels, above its caption."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = images.resize(picture, size, "bicubic" if scale < 1 else "nearest")
    cell = np.full((SIDE + lines * LINE, SIDE, 3), PAPER, np.uint8)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    cell[top : top + size[0], left : left + size[1]] = small
    canvas = Image.fromarray(cell)
    font = ImageFont.load_default(size=FONT)
    ImageDraw.Draw(canvas).multiline_text((0, SIDE), caption, (INK,) * 3, font, spacing=LINE - FONT)
    return np.asarray(canvas)
