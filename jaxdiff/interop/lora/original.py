"""Names of a `UNet2DConditionModel`'s modules in latent diffusion's own code, such as ``input_blocks.4.1``.

kohya's files of Stable Diffusion XL have them. They count blocks through all levels, so they follow from the number of
blocks per level.
"""

import itertools
import re
from collections.abc import Collection, Iterator

_BLOCK = re.compile(
    r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)"
)
_WITHIN: dict[str, dict[str, str]] = {
    "resnets": {
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}
"""Names within a block; those of attention are the same."""

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}


def original_names(modules: Collection[str]) -> dict[str, str]:
    """{name in diffusers: name in latent diffusion} of those modules of a U-Net that have one."""
    found = {ours: theirs for ours, theirs in _OUTSIDE.items() if ours in modules}
    matches = [match for module in modules if (match := _BLOCK.fullmatch(module))]
    blocks = dict(_blocks({match[1] for match in matches}))
    for match in matches:
        block, kind, within = match.groups()
        renamed = within if kind == "attentions" else _WITHIN[kind].get(within)
        if renamed and block in blocks:
            found[match[0]] = f"{blocks[block]}.{renamed}"
    return found


def _blocks(there: set[str]) -> Iterator[tuple[str, str]]:
    yield from _encoder(there)
    yield from _middle(there)
    yield from _decoder(there)


def _encoder(there: set[str]) -> Iterator[tuple[str, str]]:
    taken = itertools.count(1)  # block 0 is the first convolution
    for level in _levels("down_blocks", there):
        for j in _numbers(f"{level}.resnets", there):
            yield from _pair(level, j, f"input_blocks.{next(taken)}")
        if f"{level}.downsamplers.0" in there:
            yield f"{level}.downsamplers.0", f"input_blocks.{next(taken)}.0"


def _middle(there: set[str]) -> Iterator[tuple[str, str]]:
    """Residual blocks and attention in turn."""
    parts = [
        f"mid_block.{kind}.{j}"
        for j in _numbers("mid_block.resnets", there)
        for kind in ("resnets", "attentions")
    ]
    for position, part in enumerate(part for part in parts if part in there):
        yield part, f"middle_block.{position}"


def _decoder(there: set[str]) -> Iterator[tuple[str, str]]:
    """The upsampler of a level stands in the last block of the level, behind that block's attention."""
    taken, block = itertools.count(), ""
    for level in _levels("up_blocks", there):
        last = 0
        for last in _numbers(f"{level}.resnets", there):
            block = f"output_blocks.{next(taken)}"
            yield from _pair(level, last, block)
        position = 2 if f"{level}.attentions.{last}" in there else 1
        yield f"{level}.upsamplers.0", f"{block}.{position}"


def _pair(level: str, j: int, block: str) -> Iterator[tuple[str, str]]:
    yield f"{level}.resnets.{j}", f"{block}.0"
    yield f"{level}.attentions.{j}", f"{block}.1"


def _levels(side: str, there: set[str]) -> Iterator[str]:
    return itertools.takewhile(
        lambda level: f"{level}.resnets.0" in there, (f"{side}.{i}" for i in itertools.count())
    )


def _numbers(stem: str, there: set[str]) -> Iterator[int]:
    return itertools.takewhile(lambda j: f"{stem}.{j}" in there, itertools.count())
