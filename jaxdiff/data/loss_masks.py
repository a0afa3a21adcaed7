"""Masks of the loss beside the images of a folder: their alpha, or files of the same names in another folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data.decoding import FORMATS, read_image
from jaxdiff.errors import expect

ALPHA = "alpha"
"""The masks of an `ImageFolder` that are the alpha of its images."""


def of_files(folder: str, files: Sequence[str]) -> dict[str, Path]:
    """The mask of each image: the file of the same path, up to its suffix, in `folder`.

    Raises:
      UserError: there is no such folder, or an image has no mask.
    """
    root = Path(folder).expanduser()
    expect(root.is_dir(), "masks", folder, "'alpha' or a folder of masks", "check the path", "no such folder")
    found = {file: _in(root, file) for file in files}
    bare = [file for file, mask in found.items() if mask is None]
    got = f"none for {len(bare)} of {len(files)}, such as {', '.join(bare[:1])}"
    fix = "add them; a white image counts every pixel"
    expect(not bare, "masks", folder, "a mask for each image", fix, got)
    return {file: mask for file, mask in found.items() if mask is not None}


def joined(
    image: UInt8[np.ndarray, "height width channels"], name: str, mask: Path, max_pixels: int
) -> UInt8[np.ndarray, "height width more"]:
    """An image with its mask as the last channel, so that both are resized and cut alike.

    Raises:
      UserError: the mask cannot be read, or differs from the image in size.
    """
    levels = read_image(mask, str(mask), 1, (255, 255, 255), max_pixels)
    got, expected = (f"{array.shape[1]} x {array.shape[0]} pixels" for array in (levels, image))
    fix = "give it the size of its image"
    expect(got == expected, "masks", str(mask), f"the size of {name}, {expected}", fix, got)
    return np.concatenate([image, levels], axis=-1)


def _in(root: Path, file: str) -> Path | None:
    """The mask of an image, if there is one."""
    stem = (root / file).with_suffix("")
    paths = (stem.with_name(stem.name + suffix) for suffix in FORMATS)
    return next((path for path in paths if path.is_file()), None)
