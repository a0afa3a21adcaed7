"""The vocabulary that ships with jaxdiff is CLIP's: its ids are transformers', and some are known."""

import importlib.resources
import unicodedata

import pytest

from jaxdiff.data.clip_merges import SIZE, write_clip_tokenizer
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.tokenizer_files import END
from tests.data.test_published_tokenizers import LONG, TEXTS

KNOWN = {"a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407]}


@pytest.mark.parametrize(("pad", "index"), [(END, 49407), ("!", 0)])
def test_ids_are_those_of_transformers_and_of_the_published_model(pad, index, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_clip_tokenizer(tmp_path / "tokenizer", pad)
    ours = ClipTokenizer(str(tmp_path / "tokenizer"))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(theirs) == SIZE == 49408
    for text in (*TEXTS, LONG, *KNOWN):
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.encode(text).tolist() == expected, text
    for text, ids in KNOWN.items():
        assert ours.encode(text).tolist() == [*ids, *[index] * (77 - len(ids))]


def test_each_sign_comes_back_and_the_licence_stands_beside(tmp_path):
    write_clip_tokenizer(tmp_path / "tokenizer")
    tokenizer = ClipTokenizer(str(tmp_path / "tokenizer"), chunks=60)
    for first in range(0x100, 0x1800, 0x400):
        signs = " ".join(map(chr, range(first, first + 0x400)))
        known = unicodedata.normalize("NFC", signs).lower()
        assert "".join(tokenizer.decode(tokenizer.encode(signs)).split()) == "".join(known.split())
    licence = importlib.resources.files("jaxdiff.data") / "clip_merges.LICENSE"
    assert "MIT License" in licence.read_text()
