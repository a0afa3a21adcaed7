"""DALL-E 2, "unCLIP": text to image at 1024 pixels through CLIP's image embeddings (Ramesh et al. 2022).

variant       output                             parameters
clip          vectors of images and of texts     986,339,841
prior         an image embedding from a text     1,225,561,088, besides CLIP's text encoder
decoder       64 x 64 pixels from an embedding   3,466,719,750, besides CLIP's image encoder
upsample256   256 x 256 pixels from 64           729,710,726
upsample1024  1024 x 1024 pixels from 256        282,064,326, on crops of 256 x 256

Hardware and time: not run here. Parameters of the first three are split over all devices.
From memory of the paper's tables, not checked: the sizes of all networks, noise schedules, batch sizes, learning rates,
weight decays, numbers of steps and of sampling steps, and the paper's counts: 1 B for the prior, 3.5 B for the decoder,
700 M and 300 M for the upsamplers. CLIP's batch size and steps, and all guidance scales, are choices of ours.
Differences from the paper: CLIP is trained without sharpness-aware steps. The decoder's text encoder reads bytes
instead of byte pairs. The prior is sampled by DDPM with the posterior's variance instead of the analytic one, once
instead of taking the better of two samples.
Data: folders of images with a .txt file of captions next to each, and the files of CLIP's tokenizer in runs/dalle2.

    python -m jaxdiff.train --config configs/dalle2.py:clip
    python -m jaxdiff.train --config configs/dalle2.py:prior
"""

from ml_collections import ConfigDict

from jaxdiff.codecs.image_embedding import ImageEmbedding
from jaxdiff.codecs.pixels import Pixels
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.encoded_image import EncodedImage
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Blur, Bsr, Chain, Downsample
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.data.transforms import RandomCrop
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.clip_vision import ClipVisionEncoder
from jaxdiff.models.dual_encoder import DualEncoder
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.joint_attention import JointAttention
from jaxdiff.models.prior_transformer import PriorTransformer
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.models.unclip_text import PriorText
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import Data, LearnedVariance, Noise
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.process.weighting import Flat
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.grids.discrete import Respaced
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.bounds import Hybrid
from jaxdiff.tasks.contrastive import ContrastiveTask
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant, Cosine

CLIP = "runs/dalle2_clip"
EMBEDDING = 1024  # width of CLIP's space
WORDS = spec(ClipTokenizer, folder="runs/dalle2/tokenizer")
BYTES = spec(ByteTokenizer, length=256)  # the decoder's own text
COSINE, LINEAR = (
    spec(VariancePreserving, schedule=spec(Table, betas=spec(betas))) for betas in (CosineBetas, LinearBetas)
)


def get_config(variant: str = "clip") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return VARIANTS[variant]()


def image_encoder() -> ConfigDict:
    """ViT-H/16 for 256 pixels."""
    return spec(
        ClipVisionEncoder,
        width=1280,
        layers=32,
        heads=16,
        activation="gelu",
        image_size=256,
        patch=16,
        projection=EMBEDDING,
        dtype="bfloat16",
    )


def text_encoder() -> ConfigDict:
    return spec(
        ClipTextEncoder,
        width=1024,
        layers=24,
        heads=16,
        activation="gelu",
        projection=EMBEDDING,
        pooled=True,
        dtype="bfloat16",
    )


def clip() -> ConfigDict:
    task = spec(
        ContrastiveTask,
        network=spec(DualEncoder, image=image_encoder(), text=text_encoder()),
        tokenizer=WORDS,
        image_shape=(256, 256, 3),
    )
    optimizer = spec(
        AdamW, learning_rate=3e-4, schedule=spec(Cosine, warmup_steps=2000), b2=0.98, weight_decay=0.2
    )
    return experiment(task, optimizer, "images_256", words=WORDS, steps=600_000, batch_size=32_768)


def prior() -> ConfigDict:
    width = 2048
    text = spec(
        Text,
        tokenizer=WORDS,
        encoder=spec(PriorText, clip=text_encoder(), width=width),
        drop_rate=0.1,
    )
    task = spec(
        DenoisingTask,
        denoiser=spec(
            Denoiser,
            network=spec(PriorTransformer, width=width, layers=24, heads=32, dtype="bfloat16", remat=True),
            conditioner=spec(
                Conditioner,
                noise=spec(NoiseLevel, width=width, frequencies=width // 2),
                conditions={"text": text},
            ),
            process=COSINE,
            parameterization=spec(Data, label=spec(StepIndex)),
        ),
        time_sampler=spec(UniformSteps),
        objective=spec(WeightedError, weighting=spec(Flat, space=spec(Data))),
        image_shape=(256, 256, 3),
        codec=spec(ImageEmbedding, network=image_encoder(), weights=frozen("image")),
        pretrained={"conditioner/parts_text/clip": frozen("text")},
    )
    optimizer = adam(1.1e-4, b2=0.96, weight_decay=6e-2)
    sampling = recipe(spec(Ancestral), steps=64, guidance=4.0, modifiers=())
    return experiment(task, optimizer, "images_256", WORDS, 600_000, 4096, sampling=sampling)


def decoder() -> ConfigDict:
    width, tokens = 512, 2048
    attention = spec(JointAttention, head_dim=64)
    levels = [
        spec(
            Level,
            width=multiple * width,
            blocks=3,
            dropout=0.1,
            attention=attention if multiple > 1 else None,
        )
        for multiple in (1, 2, 3, 4)
    ]
    text = spec(
        Text,
        tokenizer=BYTES,
        encoder=spec(ByteTransformer, width=tokens, layers=24, head_dim=64, dtype="bfloat16"),
        vector_width=4 * width,
        drop_rate=0.5,
    )
    vector = spec(
        EmbeddedVector, size=EMBEDDING, vector_width=4 * width, tokens=4, width=tokens, drop_rate=0.1
    )
    image = spec(EncodedImage, encoder=image_encoder(), part=vector)
    task = pixels(
        unet(levels, attention),
        4 * width,
        {"text": text, "image": image},
        64,
        field="small",
        pretrained={"conditioner/parts_image/encoder": frozen("image")},
    )
    small = (spec(Degrade, field="small", degradation=spec(Downsample, factor=4)),)
    sampling = recipe(spec(Ancestral, variance="learned"), steps=250, guidance=3.0)
    return experiment(task, adam(1.2e-4), "images_256", BYTES, 800_000, 2048, small, sampling=sampling)


def upsample256() -> ConfigDict:
    """The low resolution is blurred in half of all examples."""
    width = 320
    levels = [spec(Level, width=multiple * width, blocks=3, dropout=0.1) for multiple in (1, 2, 3, 4)]
    blurred = spec(Chain, steps=(spec(Downsample, factor=4), spec(Blur, probability=0.5)))
    low = (spec(Degrade, field="low_res", degradation=blurred),)
    task = pixels(unet(levels), 4 * width, {"low_res": low_res()}, 256)
    sampling = recipe(spec(Ddim), steps=27)
    return experiment(
        task, adam(1.2e-4), "images_256", None, 1_000_000, 1024, low, sampling=sampling, fsdp=False
    )


def upsample1024() -> ConfigDict:
    """The low resolution is degraded as for blind super-resolution. Training sees crops of 256 x 256 pixels."""
    width = 192
    levels = [spec(Level, width=multiple * width, blocks=2) for multiple in (1, 1, 2, 2, 4, 4)]
    low = (spec(Degrade, field="low_res", degradation=spec(Bsr, factor=4)),)
    task = pixels(unet(levels), 4 * width, {"low_res": low_res()}, 256, process=LINEAR)
    sampling = recipe(spec(Ddim), steps=15)
    crop = (spec(RandomCrop, size=256),)
    return experiment(task, adam(1e-4), "images_1024", None, 1_000_000, 512, low, crop, sampling, fsdp=False)


def unet(levels: list[ConfigDict], attention: ConfigDict | None = None) -> ConfigDict:
    """ADM's, with attention where it is given."""
    return spec(
        UNet,
        levels=tuple(levels),
        out_channels=6,
        block=spec(BlockOptions, min_group_size=1),
        middle=spec(ResidualMiddle, attention=attention),
        dtype="bfloat16",
        remat=True,
    )


def low_res() -> ConfigDict:
    return spec(ImageCondition, channels=3, factor=4.0, method="bicubic", null="none", drop_rate=0.0)


def pixels(
    network: ConfigDict,
    vector: int,
    parts: dict,
    size: int,
    process: ConfigDict = COSINE,
    field: str = "image",
    pretrained: dict | None = None,
) -> ConfigDict:
    """Noise prediction with learned variance (Nichol & Dhariwal 2021)."""
    return spec(
        DenoisingTask,
        denoiser=spec(
            Denoiser,
            network=network,
            conditioner=spec(
                Conditioner, noise=spec(NoiseLevel, width=vector, frequencies=vector // 8), conditions=parts
            ),
            process=process,
            parameterization=spec(LearnedVariance, mean=spec(Noise, label=spec(StepIndex))),
        ),
        time_sampler=spec(UniformSteps),
        objective=spec(Hybrid),
        image_shape=(size, size, 3),
        codec=spec(Pixels),
        data_field=field,
        pretrained=pretrained or {},
    )


def frozen(module: str) -> ConfigDict:
    return spec(RunWeights, workdir=CLIP, module=module)


def adam(rate: float, b2: float = 0.999, weight_decay: float = 0.0) -> ConfigDict:
    return spec(AdamW, learning_rate=rate, schedule=spec(Constant), b2=b2, weight_decay=weight_decay)


def recipe(
    sampler: ConfigDict, steps: int, guidance: float = 1.0, modifiers: tuple = (spec(StaticThreshold),)
) -> ConfigDict:
    return spec(
        Recipe,
        sampler=sampler,
        grid=spec(Respaced),
        guidance=spec(ClassifierFree, scale=guidance),
        steps=steps,
        modifiers=modifiers,
    )


def experiment(
    task: ConfigDict,
    optimizer: ConfigDict,
    folder: str,
    words: ConfigDict | None,
    steps: int,
    batch_size: int,
    derived: tuple[ConfigDict, ...] = (),
    transforms: tuple[ConfigDict, ...] = (),
    sampling: ConfigDict | None = None,
    fsdp: bool = True,
) -> ConfigDict:
    tokenize = () if words is None else (spec(Tokenize, tokenizer=words),)
    source = spec(
        ImageFolder,
        path=f"data/{folder}",
        size=int(folder.removeprefix("images_")),
        label=None,
        captions="txt" if words is not None else None,
        broken="skip",
    )
    return spec(
        Experiment,
        task=task,
        optimizer=optimizer,
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=source,
            transforms=transforms,
            conditions=(*tokenize, *derived),
            threads=16,
            prefetch=64,
        ),
        sampling=sampling,
        mesh=spec(MeshShape, data=1, fsdp=-1) if fsdp else spec(MeshShape),
        steps=steps,
        batch_size=batch_size,
        checkpoint_every=10_000,
        sample_every=0,
    )


VARIANTS = {
    "clip": clip,
    "prior": prior,
    "decoder": decoder,
    "upsample256": upsample256,
    "upsample1024": upsample1024,
}
