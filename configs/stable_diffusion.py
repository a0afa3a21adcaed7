"""Stable Diffusion: fine-tuned and from scratch (Rombach et al. 2022; "SDXL", Podell et al. 2023).

variant  parameters     text encoders              images       predicts
sd15     859,520,964    123,060,480                512 x 512    noise
sd21     865,910,724    340,387,840                768 x 768    v
sdxl     2,567,463,684  123,060,480 + 694,659,840  1024 x 1024  noise
refiner  2,259,526,660  694,659,840                1024 x 1024  noise
inpaint  859,535,364    123,060,480                512 x 512    noise; masked images

sd15_lora, sd21_lora and sdxl_lora train factors of low rank in the attention of the U-Net, which itself is frozen.
sd15_scratch, sd21_scratch and sdxl_scratch train a new U-Net, in the first published stage: 256 x 256 pixels, batches
of 2,048, 237,000, 550,000 and 600,000 steps. Stable Diffusion 2 predicted noise in that stage; here it predicts v from
the start. The later stages, of more pixels, are the variants without a suffix, started from the run before.

The autoencoder has 83,653,863. It and the text encoders are not trained: their files are those of the run that
`jaxdiff.convert` has made, runs/VARIANT. Fine-tuning starts from its U-Net.
Hardware and time: not run here; docs/stable_diffusion.md has estimates.
From memory, not checked: learning rate and batch size of fine-tuning, which are usual ones, and the EMA's decay.
Data: a folder of images with a .txt file of captions next to each.

    python -m jaxdiff.convert --from stable-diffusion-v1-5 --workdir runs/sd15
    python -m jaxdiff.train --config configs/stable_diffusion.py:sd15 --workdir runs/sd15_tuned
    python -m jaxdiff.train --config configs/stable_diffusion.py:sd15_lora --workdir runs/sd15_lora
    python -m jaxdiff.train --config configs/stable_diffusion.py:sd15_scratch --workdir runs/new256
    python -m jaxdiff.train --config configs/stable_diffusion.py:sd15 --workdir runs/new512 --from-workdir runs/new256
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous, ImageSize
from jaxdiff.conditioning.latent import MaskedImage
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.config import describe, spec
from jaxdiff.data.buckets import Buckets
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.masks import BoxMask, FreeFormMask, Masked, OneOf
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.text import Tokenize
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop import schedulers
from jaxdiff.interop.stable_diffusion import FAMILIES, TEXT
from jaxdiff.interop.stable_diffusion_conditions import AESTHETIC_SCORE, NEGATIVE_SCORE
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.joined_encoder import JoinedEncoder
from jaxdiff.models.lora import Lora
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.weights import AUTOENCODER, UNET, FileWeights
from jaxdiff.runs.weights import TEXT as TEXT_FILE
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.inpainting import Blending
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant
from jaxdiff.training.transfer import InitFrom

LORA, SCRATCH = "_lora", "_scratch"
"""The endings of variants that train factors of low rank, and of those that train a new U-Net."""

FIRST_STAGE = {"sd15": 237_000, "sd21": 550_000, "sdxl": 600_000}
"""Steps of the first stage of training, on 256 x 256 pixels, from the model cards and the paper of SDXL."""

ATTENTION = tuple(
    f"network/*/{name}" for name in ("query_key_value", "attention_out", "query", "key_value", "cross_out")
)
"""The projections of the U-Net's self- and cross-attention."""

CLIP_L = ClipTextEncoder(width=768, layers=12, heads=12)
OPEN_CLIP_H = ClipTextEncoder(width=1024, layers=23, heads=16, activation="gelu")
OPEN_CLIP_G = ClipTextEncoder(width=1280, layers=32, heads=20, activation="gelu", projection=1280)
XL = {"layer": -2, "final_norm": False}
SCORE = Continuous(
    None, width=None, frequencies=128, default=AESTHETIC_SCORE, null="value", null_value=NEGATIVE_SCORE
)
SIZES = {
    "original_size": ImageSize(),
    "crop": Continuous(2, width=None, frequencies=128, default=(0.0, 0.0), null="none"),
    "target_size": ImageSize(),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
      family: of its scheduler, see `FAMILIES`.
      encoders: its text encoders.
      widths: channels of each level of the U-Net.
      depths: transformer blocks of each level; 0 for a level without attention.
      heads: attention heads of every level; None for heads of 64 channels.
      sizes: conditions whose vectors are mapped together with the pooled text.
      image: a condition that is an image.
      zeros: whether the null of the text is zeros, not the empty text.
      prediction: of the U-Net, in diffusers' terms.
      pixels: height and width of images.
    """

    family: str
    encoders: tuple[ClipTextEncoder, ...]
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    depths: tuple[int, ...] = (1, 1, 1, 0)
    heads: int | None = None
    sizes: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    image: Condition | None = None
    zeros: bool = False
    prediction: str = "epsilon"
    pixels: int = 512


SD15 = Model("sd1", (CLIP_L,), heads=8)
VARIANTS = {
    "sd15": SD15,
    "sd21": Model("sd2", (OPEN_CLIP_H,), prediction="v_prediction", pixels=768),
    "sdxl": Model(
        "xl", (CLIP_L.clone(**XL), OPEN_CLIP_G.clone(**XL, pooled=True)), (320, 640, 1280), (0, 2, 10),
        sizes=SIZES, zeros=True, pixels=1024,
    ),
    "refiner": Model(
        "xl", (OPEN_CLIP_G.clone(**XL, pooled=True),), (384, 768, 1536, 1536), (0, 4, 4, 0),
        sizes={"original_size": SIZES["original_size"], "crop": SIZES["crop"], "aesthetic_score": SCORE}, pixels=1024,
    ),
    "inpaint": dataclasses.replace(SD15, image=MaskedImage()),
}  # fmt: skip
VARIANTS |= {name + ending: VARIANTS[name] for ending in (LORA, SCRATCH) for name in FIRST_STAGE}


def get_config(variant: str = "sd15") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    name, model = variant.removesuffix(LORA).removesuffix(SCRATCH), VARIANTS[variant]
    if variant.endswith(SCRATCH):
        return from_scratch(dataclasses.replace(model, pixels=256), f"runs/{name}", FIRST_STAGE[name])
    config = fine_tuning(model, f"runs/{name}")
    return with_lora(config, model) if variant.endswith(LORA) else config


def from_scratch(model: Model, run: str, steps: int) -> ConfigDict:
    """A run with a new U-Net, and the text encoders and the autoencoder of the run in the folder `run`."""
    config = fine_tuning(model, run)
    config.init_from = None
    if model.sizes:  # one square bucket, so that the conditions on sizes and crops learn those of the data
        config.data.source.size = None
        config.data.buckets = spec(Buckets, size=model.pixels, max_ratio=1.0, position="random")
    config.optimizer = spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000))
    config.steps, config.batch_size = steps, 2048
    return config


def with_lora(config: ConfigDict, model: Model) -> ConfigDict:
    """The same run, of which nothing but factors is trained; everything else is held in float16."""
    run = config.init_from.workdir
    modules = ["network", "conditioner/noise", *(["conditioner/mapping"] if model.sizes else [])]
    unet = {module: spec(FileWeights, path=f"{run}/{UNET}", module=module) for module in modules}
    config.task.pretrained = {**config.task.pretrained, **unet}
    for weights in (config.task.codec.weights, *config.task.pretrained.values()):
        weights.dtype = "float16"
    config.task.lora = spec(Lora, rank=16, targets=ATTENTION, dtype=config.task.denoiser.network.dtype)
    config.optimizer = spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=100))
    config.ema = spec(Ema, decay=0.99)
    config.init_from = None
    config.steps, config.batch_size = 2000, 1
    return config


def fine_tuning(model: Model, run: str) -> ConfigDict:
    """A run that begins as the one in the folder `run`."""
    family, text = FAMILIES[model.family], text_of(model, run)
    scheduler = {**family.scheduler, "prediction_type": model.prediction}
    conditions = {"text": text, **model.sizes, **({"source": model.image} if model.image else {})}
    conditioner = Conditioner(
        NoiseLevel(4 * model.widths[0], frequencies=model.widths[0] // 2, sine_first=False),
        conditions,
        concatenated=("text", *model.sizes) if model.sizes else (),
        mapping=VectorMlp(4 * model.widths[0]) if model.sizes else None,
    )
    process, target = schedulers.process(scheduler), schedulers.parameterization(scheduler)
    masked = Masked(OneOf((FreeFormMask(), BoxMask())), fill=0.0)
    hidden = (spec(Degrade, field="source", degradation=describe(masked)),) if model.image else ()
    recipe = schedulers.recipe(scheduler, "ddim", 50, ClassifierFree(family.guidance))
    recipe = dataclasses.replace(recipe, inpainting=None if model.image else Blending())
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=describe(Denoiser(network_of(model), conditioner, process, target)),
            time_sampler=spec(UniformSteps, steps=1000),
            image_shape=(model.pixels, model.pixels, 3),
            codec=spec(
                Latent,
                network=spec(AutoencoderKL),
                weights=spec(FileWeights, path=f"{run}/{AUTOENCODER}"),
                scaling_factor=family.scaling_factor,
                slices=1,
            ),
            pretrained=pretrained(model, f"{run}/{TEXT_FILE}"),
        ),
        optimizer=spec(AdamW, learning_rate=1e-5, schedule=spec(Constant, warmup_steps=500)),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(ImageFolder, path="images", size=model.pixels, label=None, captions="txt"),
            conditions=(describe(Tokenize(text.tokenizer)), *hidden),
            threads=16,
            prefetch=64,
        ),
        sampling=describe(recipe),
        init_from=spec(InitFrom, workdir=run),
        steps=10_000,
        batch_size=64,
        sample_every=0,
    )


def text_of(model: Model, run: str) -> Text:
    """The condition of the text, with the tokenizers of a run."""
    folders = [f"{run}/tokenizer{'' if i == 0 else f'_{i + 1}'}" for i in range(len(model.encoders))]
    tokenizers = tuple(ClipTokenizer(folder) for folder in folders)
    joined = len(tokenizers) > 1
    tokenizer = JoinedTokenizer(tokenizers) if joined else tokenizers[0]
    encoder = JoinedEncoder(model.encoders) if joined else model.encoders[0]
    return Text(tokenizer, encoder, drop_rate=0.1, null="zero" if model.zeros else "empty")


def pretrained(model: Model, path: str) -> dict[str, ConfigDict]:
    """The text encoders in the denoiser, by their paths, from a file with all of them."""
    if len(model.encoders) == 1:
        return {TEXT: spec(FileWeights, path=path)}
    names = [f"encoder_{i}" for i in range(len(model.encoders))]
    return {f"{TEXT}/{name}": spec(FileWeights, path=path, module=name) for name in names}


def network_of(model: Model) -> UNet:
    """The U-Net."""
    linear = model.heads is None  # matrices before and behind the transformers in all but the first version
    part = SpatialTransformer(
        heads=model.heads, head_dim=64 if model.heads is None else None, linear_projection=linear
    )
    parts = [dataclasses.replace(part, depth=depth) if depth else None for depth in model.depths]
    middle = dataclasses.replace(part, depth=max(model.depths))
    return UNet(
        tuple(Level(width, 2, part) for width, part in zip(model.widths, parts, strict=True)),
        out_channels=4,
        block=BlockOptions(min_group_size=1, modulation="shift"),
        middle=ResidualMiddle(middle),
        resampling="conv",
        dtype="bfloat16",
        remat=True,
    )
