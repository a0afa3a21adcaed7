"""The tokenizers of a published model: its own, what the user gives, or CLIP's that ships with jaxdiff."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from jaxdiff.data.clip_merges import SIZE, write_clip_tokenizer
from jaxdiff.data.tokenizer_files import END, clip_vocabulary
from jaxdiff.errors import expect
from jaxdiff.interop import text_encoders
from jaxdiff.interop.published import Part, PublishedModel


@contextlib.contextmanager
def tokenizers_of(model: PublishedModel, folder: str | None) -> Iterator[list[pathlib.Path]]:
    """The tokenizer's folder for each text encoder. Those of a single file exist inside the context only.

    Args:
      model: the published model.
      folder: what the user gives instead: a tokenizer for all encoders, or a pipeline with one for each.

    Raises:
      UserError: a text encoder has another vocabulary than its tokenizer.
    """
    with tempfile.TemporaryDirectory() as place:
        if folder is not None:
            found = _given(folder, len(model.texts))
        else:
            found = list(model.tokenizers) or _shipped(model, pathlib.Path(place))
        for path, part in zip(found, model.texts, strict=True):
            check_ids(path, part)
        yield found


def paddings(model: PublishedModel, folders: Sequence[pathlib.Path]) -> list[int]:
    """The id that fills up texts for each text encoder, whatever the tokenizer that a user gives says."""
    ends = [clip_vocabulary(str(folder)).end for folder in folders]
    return [end if _is_openai(part) else 0 for end, part in zip(ends, model.texts, strict=True)]


def _given(folder: str, count: int) -> list[pathlib.Path]:
    root = pathlib.Path(folder).expanduser()
    own = [path for name in ("tokenizer", "tokenizer_2") if (path := root / name).is_dir()]
    return (own or [root] * count)[:count] if len(own) in (0, count) else [own[-1]] * count


def _shipped(model: PublishedModel, place: pathlib.Path) -> list[pathlib.Path]:
    """CLIP's tokenizer for each text encoder, written below `place`."""
    fix = "give --tokenizer FOLDER, the tokenizer folder of this model (vocab.json and merges.txt)"
    folders = []
    for i, part in enumerate(model.texts):
        rows = _rows(part)
        expect(rows == SIZE, "--tokenizer", None, f"a tokenizer, since the text encoder has {rows:,} tokens and not "
               f"CLIP's {SIZE:,}", fix, "none")  # fmt: skip
        folders.append(place / str(i))
        write_clip_tokenizer(folders[-1], END if _is_openai(part) else "!")
    return folders


def _is_openai(part: Part) -> bool:
    """Whether a text encoder is one of OpenAI's, which has learned the end as padding; OpenCLIP's have learned id 0."""
    return text_encoders.clip_encoder(part.tensors, part.config or None).activation == "quick_gelu"


def check_ids(path: pathlib.Path, part: Part) -> None:
    """Raise `UserError` if a tokenizer is missing, or has ids that its text encoder does not know."""
    most, rows = clip_vocabulary(str(path)).tokenizer.get_vocab_size() - 1, _rows(part)
    expect(most < rows, "--tokenizer", str(path), f"ids below {rows}, as the text encoder has",
           "give the tokenizer of this model", str(most))  # fmt: skip


def _rows(part: Part) -> int:
    """Tokens that a text encoder knows."""
    tables = [each.shape[0] for name, each in part.tensors.items() if name.endswith("token_embedding.weight")]
    return min(tables, default=0)
