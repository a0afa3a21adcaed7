"""Masks beside the images of a folder: cut and mirrored with them, found by name, and never silently absent."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.errors import UserError
from tests.data.pixels import noise


def masks_of(count):
    return [noise(8, 12, 1, seed=200 + i) for i in range(count)]


@pytest.fixture
def folders(tmp_path):
    """Three images, 12 x 8 pixels, in a folder and a subfolder, and their masks in another folder."""
    files = ("a.jpg", "b.png", "sub/c.png")
    for name in ("images/sub", "masks/sub"):
        (tmp_path / name).mkdir(parents=True)
    for i, (file, mask) in enumerate(zip(files, masks_of(3), strict=True)):
        Image.fromarray(noise(8, 12, seed=i)).save(tmp_path / "images" / file)
        Image.fromarray(mask[..., 0]).save((tmp_path / "masks" / file).with_suffix(".png"))
    return tmp_path


def folder_of(root, masks, size=8):
    return ImageFolder(str(root / "images"), size, label=None, masks=masks)


def test_masks_are_found_by_name_and_cut_with_their_images(folders):
    plain, masked = folder_of(folders, None).open(), folder_of(folders, str(folders / "masks")).open()
    for i, mask in enumerate(masks_of(3)):
        example = masked[i]
        assert example["mask"].dtype == np.uint8
        np.testing.assert_array_equal(example["mask"], mask[:, 2:10])
        np.testing.assert_array_equal(example["image"], plain[i]["image"])
    assert "mask" not in plain[0]


def test_alpha_is_a_mask_and_keeps_the_colours_behind_it(folders):
    pixels = noise(8, 8, 4, seed=9)
    Image.fromarray(pixels).save(folders / "images" / "b.png")
    examples = folder_of(folders, "alpha").open()
    np.testing.assert_array_equal(examples[1]["image"], pixels[..., :3])
    np.testing.assert_array_equal(examples[1]["mask"], pixels[..., 3:])
    np.testing.assert_array_equal(examples[0]["mask"], 255)  # a file without alpha


def test_masks_are_mirrored_with_their_images(folders):
    pipeline = Pipeline(folder_of(folders, str(folders / "masks")), transforms=(HorizontalFlip(1.0),))
    examples, batch = pipeline.source.open(), next(iter(pipeline.batches(3, seed=0)))
    for image, mask, index in zip(batch["image"], batch["mask"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, examples[int(index)]["image"][:, ::-1])
        np.testing.assert_array_equal(mask, examples[int(index)]["mask"][:, ::-1])


def test_other_masks_are_other_data(folders):
    with_masks = folder_of(folders, str(folders / "masks"))
    before = with_masks.contents()
    assert before != folder_of(folders, None).contents()
    Image.new("L", (12, 8)).save(folders / "masks" / "b.png")
    assert with_masks.contents() != before


def test_a_missing_or_wrong_mask_is_named(folders):
    with pytest.raises(
        UserError, match="masks='nowhere': expected 'alpha' or a folder of masks, got no such"
    ):
        folder_of(folders, "nowhere").open()
    Image.new("L", (8, 8)).save(folders / "masks" / "b.png")
    examples = folder_of(folders, str(folders / "masks")).open()
    with pytest.raises(UserError, match=r"expected the size of b\.png, 12 x 8 pixels, got 8 x 8 pixels"):
        examples[1]
    (folders / "masks" / "sub" / "c.png").unlink()
    with pytest.raises(
        UserError, match=r"expected a mask for each image, got none for 1 of 3, such as sub/c\.png"
    ):
        folder_of(folders, str(folders / "masks")).open()
