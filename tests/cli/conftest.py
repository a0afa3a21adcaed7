"""The sampling command on a model in memory, and a photo."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import sampling
from tests.cli.models import PHOTO


@pytest.fixture
def call(tmp_path):
    """Runs the command on a generator; returns the arrays that it stores."""

    def run(generator, *arguments):
        out = tmp_path / "out.npz"
        words = ["--workdir", "run", "--out", str(out), "--overwrite", *map(str, arguments)]
        sampling.run(sample.parse(words), load=lambda workdir, **options: generator)
        return dict(np.load(out))

    return run


@pytest.fixture
def photo(tmp_path):
    """The file of an image."""
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
