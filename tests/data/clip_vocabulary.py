"""A vocabulary of CLIP's kind, learned here from a few words."""

import json

import tokenizers

WORDS = ["photo", "photograph", "of", "an", "astronaut", "riding", "a", "horse", "horses", "masterpiece"]


def learned_pairs():
    """Byte pairs of a few words, as CLIP has them: ids of bytes, bytes that end a word, and pairs."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=byte_level.alphabet()
    )
    learner.train_from_iterator([WORDS] * 9, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(byte_level.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    assert tokens[0] == "!"
    return {token: i for i, token in enumerate(tokens)}, merges


VOCABULARY, MERGES = learned_pairs()


def write_tokenizer(folder, **options):
    """Write a tokenizer's folder as published ones are: the vocabulary, the merges and its config."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    merges = "\n".join(f"{first} {second}" for first, second in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **options}))
