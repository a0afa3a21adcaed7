"""The tokenizer that a published model without one gets."""

import pytest
from safetensors.numpy import save_file

from jaxdiff.data.tokenizer_files import clip_vocabulary
from jaxdiff.errors import UserError
from jaxdiff.interop.published import Part, PublishedModel
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.runs.published_tokenizers import tokenizers_of
from tests import text_models


@pytest.fixture
def model(tmp_path):
    """A single file with text encoders, each of an activation and a number of tokens."""

    def part(activation, rows):
        file = tmp_path / f"{activation}.safetensors"
        save_file(text_models.numbers(text_models.clip_peer(vocab_size=rows)), file)
        return Part(read_tensors(file).tensors, {"hidden_act": activation}, "")

    def make(*texts):
        parts = tuple(part(*each) for each in texts)
        return PublishedModel(tmp_path / "sdxl.safetensors", parts[0], texts=parts)

    return make


@pytest.mark.slow
def test_a_single_file_gets_clip_s_with_the_padding_of_each_encoder(model):
    with tokenizers_of(model(("quick_gelu", 49408), ("gelu", 49408)), None) as folders:
        vocabularies = [clip_vocabulary(str(folder)) for folder in folders]
    assert [(each.begin, each.end, each.pad) for each in vocabularies] == [
        (49406, 49407, 49407),
        (49406, 49407, 0),
    ]
    assert not folders[0].exists()


@pytest.mark.parametrize("rows", [49407, 49410])
def test_a_text_encoder_of_other_tokens_asks_for_its_tokenizer(rows, model):
    expected = (
        rf"--tokenizer=None: .* has {rows:,} tokens and not CLIP's 49,408, .* Fix: give --tokenizer FOLDER"
    )
    with pytest.raises(UserError, match=expected), tokenizers_of(model(("gelu", rows)), None):
        pass
