"""A small latent text-to-image experiment on a folder of images with captions, and the files that it reads."""

import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from jaxdiff.cli.app import override
from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.text import Text
from jaxdiff.config import build, describe, spec
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.experiment import Experiment
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.joined_encoder import JoinedEncoder
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.runs.weights import FileWeights
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from tests.models.autoencoders import random_params

SIZE, COUNT, LENGTH = 8, 9, 8
AUTOENCODER = AutoencoderKL((4, 4), 1, latent_channels=2, groups=2)
CLIP = ClipTextEncoder(8, 1, 2, vocabulary=259, length=LENGTH, end=1, pooled=True)
TOKENIZER = ByteTokenizer(LENGTH)
BOTH, BOTH_TOKENIZERS = JoinedEncoder((CLIP, CLIP)), JoinedTokenizer((TOKENIZER, TOKENIZER))
TEXT = "conditioner/parts_text"


class NoiseLabel(nn.Module):
    """The noise label, repeated to the width of the text's vector."""

    def __call__(self, noise_label):
        return Embeddings(vector=jnp.tile(noise_label[:, None], (1, CLIP.width)))


class Reader(nn.Module):
    """A 1 x 1 convolution shifted by a text's vector, and by its tokens, which count by their position."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        tokens = embeddings.tokens
        shown = (
            tokens.mask[..., None] * tokens.features / jnp.arange(1, tokens.mask.shape[1] + 1)[None, :, None]
        )
        read = jnp.concatenate([embeddings.vector, shown.sum(axis=1)], axis=-1)
        shift = nn.Dense(x.shape[-1], name="shift")(read)
        return nn.Dense(x.shape[-1], name="mix")(x) + jnp.tanh(shift)[:, None, None]


def write_files(folder: pathlib.Path, count: int = COUNT) -> None:
    """Images of two classes, each with one caption or two, and weights of the autoencoder and the text encoders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / "images" / f"class_{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"it's {i}\n" + f"or {i}\n" * (i % 3 == 0))
    write_weights(folder)


def write_weights(folder: pathlib.Path, autoencoder: int = 0, text: int = 1) -> None:
    """Random weights; the numbers are the seeds."""
    save(folder / "autoencoder.safetensors", random_params(AUTOENCODER, autoencoder))
    rng = np.random.default_rng(text)
    ids = jnp.zeros((1, LENGTH), int)
    shapes = jax.eval_shape(CLIP.init, jax.random.key(0), ids)["params"]
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), nn.meta.unbox(shapes)
    )
    save(folder / "text.safetensors", params)


def save(file: pathlib.Path, params: dict) -> None:
    save_file(flatten_dict(params, sep="/"), file)


def a_config(folder: pathlib.Path, null: str = "empty", flips: bool = True) -> ConfigDict:
    """The experiment. Only a null that is learned has parameters among those of the text, beside two encoders."""
    joined, weights = null == "learned", spec(FileWeights, path=str(folder / "text.safetensors"))
    encoder, tokenizer = (BOTH, BOTH_TOKENIZERS) if joined else (CLIP, TOKENIZER)
    text = Text(tokenizer, encoder, drop_rate=0.4, null=null)
    codec = Latent(AUTOENCODER, FileWeights(str(folder / "autoencoder.safetensors")), slices=1)
    denoiser = Denoiser(
        Reader(), Conditioner(NoiseLabel(), {"text": text}), VarianceExploding(0.01, 5.0), Edm()
    )
    parts = [f"{TEXT}/encoder_0", f"{TEXT}/encoder_1"] if joined else [TEXT]
    source = ImageFolder(str(folder / "images"), SIZE, captions="txt")
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=describe(denoiser),
            time_sampler=spec(LogNormalSigma),
            image_shape=(SIZE, SIZE, 3),
            codec=describe(codec),
            pretrained=dict.fromkeys(parts, weights),
        ),
        optimizer=spec(AdamW, learning_rate=0.01),
        ema=spec(Ema, decay=0.5),
        data=describe(Pipeline(source, (HorizontalFlip(),) * flips, (Tokenize(tokenizer),))),
        sampling=describe(Recipe(Ddim(), Karras(0.02, 5.0), ClassifierFree(2.0), 2)),
        steps=3,
        batch_size=8,
        log_every=1,
        checkpoint_every=3,
        sample_every=0,
    )


def changed(config: ConfigDict, changes: Mapping[str, str]) -> ConfigDict:
    """The config after overrides, whose paths are written with ``__`` for a dot."""
    for path, text in changes.items():
        override(config, path.replace("__", "."), text)
    return config


def built(folder: pathlib.Path, **changes: str) -> Experiment:
    return build(changed(a_config(folder), changes))


def quiet(done: int, count: int) -> None:
    """Progress that is not shown."""
