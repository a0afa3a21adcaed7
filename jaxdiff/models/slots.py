"""Inputs of U-Nets: residuals are added, and sizes and slots of `Embeddings` that a network cannot read are refused."""

from collections.abc import Collection, Mapping

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import expect
from jaxdiff.models.interface import Grid
from jaxdiff.typing import Images

READERS = {
    "controls": "jaxdiff.models.control_net:Controlled",
    "image_prompts": "jaxdiff.models.spatial_transformer:SpatialTransformer with cross-attention",
    "residuals": "jaxdiff.models.unet:UNet",
    "spatial": "jaxdiff.models.unet:UNet",
}
"""What reads the slots that only some networks read."""


def add_residual(h: Grid, residuals: Mapping[str, Grid], name: str) -> Grid:
    """The features of a module with its residual, if there is one."""
    if name not in residuals:
        return h
    residual = residuals[name]
    got = residual.shape[1:]
    expect(
        got == h.shape[1:],
        f"residuals.{name}",
        got,
        f"the shape of these features, {h.shape[1:]}",
        "use a control that was made for this network, and control images of its size",
    )
    return h + residual.astype(h.dtype)


def check_places(residuals: Mapping[str, Grid], places: Collection[str]) -> None:
    """Raise a `UserError` if a residual belongs to none of a network's `places`."""
    for name in residuals:
        expect(
            name in places,
            "residuals",
            name,
            f"one of {', '.join(places)}",
            "use a control that was made for this network",
        )


def check_unread(embeddings: Embeddings, *slots: str) -> None:
    """Raise a `UserError` if a condition fills one of the slots, which the network does not read."""
    for slot in slots:
        expect(
            getattr(embeddings, slot) is None,
            slot,
            "...",
            "an empty slot, because this network does not read it",
            f"leave the condition out, or use {READERS[slot]}",
            "a condition that fills it",
        )


def check_inputs(levels: int, x: Images, embeddings: Embeddings, patch: int = 1) -> None:
    """Raise a `UserError` if a network of `levels` resolutions cannot work on these images and embeddings."""
    size, factor = x.shape[1:3], patch * 2 ** (levels - 1)
    expect(
        not any(side % factor for side in size),
        "image_shape",
        size,
        f"multiples of {factor} for {levels} levels at patches of {patch}",
        f"use multiples of {factor}, or fewer levels",
    )
    expect(
        embeddings.vector is not None,
        "vector",
        None,
        "a conditioning vector for the norms",
        "use a noise embedding that fills the vector slot",
    )
    check_unread(embeddings, "controls")
    spatial = None if embeddings.spatial is None else embeddings.spatial.shape[1:3]
    expect(
        spatial is None or spatial == size,
        "spatial",
        spatial,
        f"the size of the noisy images, {size}",
        "resize the condition to the image",
    )
