"""Stable Diffusion from a diffusers folder: the same images as diffusers makes, and the same files on the way back."""

import json
import shutil
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff import config as configs
from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.data.joined_tokenizer import Texts
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.handover import Handover
from jaxdiff.interop import published
from jaxdiff.runs.published import convert
from jaxdiff.runs.workdir import read_config
from jaxdiff.sampling.samplers.consistency import Consistency
from tests import pipelines
from tests.pipelines import as_torch, check_images
from tests.selection import some

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

KINDS = ("sd1", "sd2", "xl")
TEXTS = ["a photo of a horse", "Astronaut riding, (masterpiece:1.2)"]
NOISE = np.random.default_rng(0).standard_normal((2, 16, 24, 4)).astype(np.float32)
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver2m": "DPMSolverMultistepScheduler",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline's folder of each kind."""
    root = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {kind: pipelines.write(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def runs(folders):
    """The runs made of them."""
    for kind, folder in folders.items():
        convert(published.find(folder), str(folder.parent / f"run_{kind}"))
    return {kind: str(folder.parent / f"run_{kind}") for kind, folder in folders.items()}


def experiment_of(run):
    return configs.build(read_config(str(run)))


def peer(kind, folder, sampler):
    """diffusers' pipeline, with another sampler if one is named."""
    return pipelines.pipeline(kind, folder, CLASSES.get(sampler))


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        pytest.param("sd1", None, marks=pytest.mark.slow),
        pytest.param("sd1", "ddim", marks=pytest.mark.slow),
        pytest.param("sd1", "dpmsolver2m", marks=pytest.mark.slow),
        pytest.param("sd2", "ddim", marks=pytest.mark.slow),
        pytest.param("sd2", "euler", marks=pytest.mark.slow),
        pytest.param("xl", None, marks=pytest.mark.slow),
        pytest.param("xl", "dpmsolver2m", marks=pytest.mark.slow),
    ],
)
def test_images_are_those_of_diffusers(kind, sampler, folders, runs):
    pipe = peer(kind, folders[kind], sampler)
    options = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "height": 32,
        "width": 48,
        "output_type": "np",
    }
    negative = ["horses of masterpiece"] * 2
    expected = pipe(TEXTS, negative_prompt=negative, latents=as_torch(NOISE), **options).images
    generator = Generator.load(runs[kind], sampler=sampler, overrides=[("sampling.steps", "4")])
    given = {"guidance": 5.0, "noise": NOISE, "image_size": (32, 48)}
    check_images(generator(text=TEXTS, negative={"text": negative[0]}, **given), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "scheduler", "settings"),
    [
        ("Lightning", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("Hyper-SD", "DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("LCM", "LCMScheduler", {}),
    ],
)
def test_a_distilled_model_s_sampler_has_four_steps_without_guidance(
    sampler, scheduler, settings, folders, runs, monkeypatch
):
    import diffusers
    from diffusers.schedulers import scheduling_lcm

    noise = np.random.default_rng(1).standard_normal((4, *NOISE.shape)).astype(np.float32)
    later = iter(noise[1:])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: as_torch(next(later)))
    pipe = peer("sd1", folders["sd1"], None)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    expected = pipe(
        TEXTS, num_inference_steps=4, guidance_scale=0.0, height=32, width=48, output_type="np",
        latents=as_torch(noise[0]),
    ).images  # fmt: skip
    generator = Generator.load(runs["sd1"], sampler=sampler)
    draws = {"draws": noise[1:]} if sampler == "LCM" else {}
    check_images(generator(text=TEXTS, noise=noise[0], image_size=(32, 48), **draws), expected)


@pytest.mark.slow
def test_a_folder_with_the_scheduler_of_a_distilled_model_has_its_steps_and_no_guidance(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "folder")
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"_class_name": "LCMScheduler"}))
    convert(published.find(folder), str(tmp_path / "run"))
    recipe = experiment_of(tmp_path / "run").sampling
    assert (recipe.steps, recipe.guidance.scale) == (4, 1.0)
    assert recipe.sampler == Consistency()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [None, ""])
def test_no_negative_prompt_is_zeros_in_sdxl_and_an_empty_one_is_a_text(prompt, folders, runs):
    pipe, noise = peer("xl", folders["xl"], "ddim"), NOISE[:1, :, :16]
    options = {
        "num_inference_steps": 2,
        "guidance_scale": 7.0,
        "height": 32,
        "width": 32,
        "output_type": "np",
    }
    expected = pipe(TEXTS[0], negative_prompt=prompt, latents=as_torch(noise), **options).images
    generator = Generator.load(runs["xl"], sampler="ddim", overrides=[("sampling.steps", "2")])
    negative = None if prompt is None else {"text": prompt}
    check_images(generator(text=TEXTS[0], guidance=7.0, negative=negative, noise=noise), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "negative"), [("sd1", None), ("sd1", "horses of masterpiece"), ("xl", "horses of masterpiece")]
)
def test_a_clip_skip_acts_on_the_prompt_alone_as_in_diffusers(kind, negative, folders, runs):
    pipe, noise = peer(kind, folders[kind], "ddim"), NOISE[:1, :, :16]
    expected = pipe(
        TEXTS[0], negative_prompt=negative, clip_skip=1, latents=as_torch(noise), num_inference_steps=2,
        guidance_scale=7.0, height=32, width=32, output_type="np",
    ).images  # fmt: skip
    path = "task.denoiser.conditioner.conditions.text.clip_skip"
    generator = Generator.load(runs[kind], sampler="ddim", overrides=[("sampling.steps", "2"), (path, "1")])
    given = None if negative is None else {"text": negative}
    check_images(generator(text=TEXTS[0], guidance=7.0, negative=given, noise=noise), expected)


@pytest.mark.slow
def test_a_second_prompt_is_prompt_2_of_diffusers(folders, runs, tmp_path):
    pipe, noise = peer("xl", folders["xl"], "ddim"), NOISE[:1, :, :16]
    expected = pipe(
        TEXTS[0], prompt_2=TEXTS[1], negative_prompt="photo", negative_prompt_2="horses", latents=as_torch(noise),
        num_inference_steps=2, guidance_scale=7.0, height=32, width=32, output_type="np",
    ).images  # fmt: skip
    generator = Generator.load(runs["xl"], sampler="ddim", overrides=[("sampling.steps", "2")])
    negative = {"text": Texts(("photo", "horses"))}
    check_images(generator(text=Texts(tuple(TEXTS)), negative=negative, guidance=7.0, noise=noise), expected)
    np.save(tmp_path / "noise.npy", noise)
    command = [
        "--workdir", runs["xl"], "--condition", f"text={json.dumps(TEXTS)}", "--negative", 'text=["photo", "horses"]',
        "--guidance", "7", "--sampler", "ddim", "--steps", "2", "--noise", str(tmp_path / "noise.npy"),
        "--out", str(tmp_path / "out.npz"),
    ]  # fmt: skip
    sampling.run(sample.parse(command))
    written = np.load(tmp_path / "out.npz")
    check_images(written["images"], expected)
    assert json.loads(str(written["text"])) == TEXTS


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sampler"), [("sd1", "ddim"), ("sd2", "dpmsolver2m"), ("xl", None)])
def test_edits_are_image_to_image_of_diffusers(kind, sampler, folders, runs):
    import diffusers
    import torch

    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    pipe = peer(kind, folders[kind], sampler)
    cls = (
        diffusers.StableDiffusionXLImg2ImgPipeline
        if kind == "xl"
        else diffusers.StableDiffusionImg2ImgPipeline
    )
    edit = cls(**{**pipe.components, **({} if kind == "xl" else {"requires_safety_checker": False})})
    module = __import__(type(edit).__module__, fromlist=["x"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *shape, **options: as_torch(NOISE[:1]))
        expected = edit(
            TEXTS[0], image=torch.tensor(image / 255.0).permute(2, 0, 1)[None].float(), strength=0.7,
            num_inference_steps=6, guidance_scale=5.0, output_type="np",
        ).images  # fmt: skip
    generator = Generator.load(runs[kind], sampler=sampler, overrides=[("sampling.steps", "6")])
    found = generator.edit(
        image[None], 0.7, text=TEXTS[0], guidance=5.0, noise=NOISE[:1], image_size=(32, 48)
    )
    check_images(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(KINDS, ("xl",)))
def test_a_folder_comes_back_bit_for_bit_and_opens_in_diffusers(kind, folders, runs, tmp_path):
    import diffusers

    pipelines.export_folder(runs[kind], tmp_path / "out")
    for file in sorted(folders[kind].rglob("*.safetensors")):
        found, expected = load_file(tmp_path / "out" / file.relative_to(folders[kind])), load_file(file)
        named = {name.removeprefix("text_model."): array for name, array in found.items()}
        assert named.keys() == {name.removeprefix("text_model.") for name in expected}
        for name, array in expected.items():
            np.testing.assert_array_equal(named[name.removeprefix("text_model.")], array)
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(opened).__name__ == f"StableDiffusion{'XL' if kind == 'xl' else ''}Pipeline"
    assert dict(opened.scheduler.config)["beta_end"] == 0.012


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(KINDS, ("xl",)))
def test_a_single_file_gives_the_same_run(kind, folders, runs, tmp_path):
    file = tmp_path / "model.safetensors"
    pipelines.export_file(runs[kind], file)
    convert(published.find(file), str(tmp_path / "run"), tokenizer=str(folders[kind]))
    for name in ("unet", "text_encoder", "autoencoder"):
        found, expected = (
            load_file(f"{run}/frozen/{name}.safetensors") for run in (tmp_path / "run", runs[kind])
        )
        assert found.keys() == expected.keys()
        for path, array in expected.items():
            np.testing.assert_array_equal(found[path], array)


def test_a_single_file_of_another_vocabulary_needs_a_tokenizer(folders, runs, tmp_path):
    file = tmp_path / "model.safetensors"
    pipelines.export_file(runs["sd1"], file)
    with pytest.raises(UserError, match=r"has \d+ tokens and not CLIP's 49,408, .*Fix: give --tokenizer"):
        convert(published.find(file), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", pipelines.KINDS)
def test_a_single_file_alone_reads_texts_as_its_folder_does(kind, tmp_path):
    folder = pipelines.with_clip_vocabulary(kind, pipelines.write(kind, tmp_path / "folder"))
    convert(published.find(folder), str(tmp_path / "of_folder"))
    file = tmp_path / "model.safetensors"
    pipelines.export_file(str(tmp_path / "of_folder"), file)
    convert(published.find(file), str(tmp_path / "of_file"))
    found, expected = (
        experiment_of(tmp_path / name).task.denoiser.conditioner.conditions["text"]
        for name in ("of_file", "of_folder")
    )
    assert found.encoder == expected.encoder
    ours, theirs = (
        list(getattr(each.tokenizer, "tokenizers", [each.tokenizer])) for each in (found, expected)
    )
    for end, one, other in zip(pipelines.KINDS[kind].texts, ours, theirs, strict=True):
        peer = pipelines.tokenizer(end, folder)
        for text in ("", "a photo of an astronaut", "caf\u00e9 2024!!"):
            ids = peer(text, padding="max_length", max_length=77, truncation=True).input_ids
            assert one.encode(text).tolist() == other.encode(text).tolist() == ids
        assert one.encode("")[-1] == (0 if end or kind in ("sd2", "upscaler") else 49407)


def test_a_single_file_with_another_network_is_refused_and_counters_are_not(folders, runs, tmp_path):
    file = tmp_path / "model.safetensors"
    pipelines.export_file(runs["sd1"], file)
    tensors = load_file(file)
    counters = {
        "betas": np.ones(9, np.float32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
    }
    save_file({**tensors, **counters}, file)
    convert(published.find(file), str(tmp_path / "run"), tokenizer=str(folders["sd1"]))
    save_file({**tensors, "control_model.time_embed.0.weight": np.ones((2, 2), np.float32)}, file)
    with pytest.raises(UserError, match=r"got other tensors too: control_model\.time_embed\.0\.weight"):
        published.find(file)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("tokenizer", ["sd1", "sd2"])
def test_openai_s_clip_is_padded_by_the_end_whatever_tokenizer_is_given(tokenizer, folders, tmp_path):
    """Stable Diffusion 2's tokenizer pads by "!", which its text encoder has learned and CLIP has not."""
    convert(published.find(folders["sd1"]), str(tmp_path / "run"), str(folders[tokenizer] / "tokenizer"))
    own = Generator.load(str(tmp_path / "run")).denoiser.conditioner.conditions["text"].tokenizer
    ids = own.encode("a horse")
    assert ids[-1] == len(pipelines.VOCABULARY) - 1


@pytest.mark.parametrize("change", some([10, -10], [-10]))
def test_a_text_ends_where_the_tokenizer_says_and_ids_without_a_row_are_refused(
    change, folders, runs, tmp_path
):
    """Single files do not say which id is the end; a table may have more rows than the tokenizer has ids."""
    file = tmp_path / "model.safetensors"
    pipelines.export_file(runs["xl"], file)
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("token_embedding.weight"):
            rows = len(tensors[name]) + change
            tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
    save_file(tensors, file)
    if change < 0:
        with pytest.raises(UserError, match=r"--tokenizer=.*: expected ids below"):
            convert(published.find(file), str(tmp_path / "run"), tokenizer=str(folders["xl"]))
        return
    convert(published.find(file), str(tmp_path / "run"), tokenizer=str(folders["xl"]))
    text = Generator.load(str(tmp_path / "run")).denoiser.conditioner.conditions["text"]
    assert [encoder.end for encoder in text.encoder.encoders] == [len(pipelines.VOCABULARY) - 1] * 2


@pytest.mark.slow
def test_marks_in_a_single_file_are_read_and_unknown_ones_refused(folders, runs, tmp_path):
    file = tmp_path / "model.safetensors"
    pipelines.export_file(runs["sd1"], file)
    tensors, mark = load_file(file), np.zeros(0, np.float32)
    save_file({**tensors, "v_pred": mark, "ztsnr": mark}, file)
    convert(published.find(file), str(tmp_path / "run"), tokenizer=str(folders["sd1"]))
    denoiser = Generator.load(str(tmp_path / "run")).denoiser
    assert type(denoiser.parameterization).__name__ == "V"
    assert denoiser.process.signal(jnp.float32(1.0))[0] == 0
    save_file({**tensors, "edm_mean": mark}, file)
    with pytest.raises(UserError, match="got other tensors too: edm_mean"):
        published.find(file)


@pytest.mark.slow
def test_a_sampler_that_the_settings_do_not_allow_is_a_warning(folders, tmp_path, caplog):
    """diffusers' Heun does not rescale betas."""
    folder = shutil.copytree(folders["sd2"], tmp_path / "folder")
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("{", '{"rescale_betas_zero_snr": true, ', 1))
    convert(published.find(folder), str(tmp_path / "run"))
    Generator.load(str(tmp_path / "run"), sampler="heun")
    assert "allow no such recipe, but ancestral, ddim" in caplog.text
    assert Generator.load(str(tmp_path / "run"), sampler="ddim").recipe.sampler


@pytest.mark.slow
def test_a_refiner_of_other_latents_is_refused(runs):
    first, second = (Generator.load(runs[kind]) for kind in ("xl", "sd1"))
    with pytest.raises(UserError, match=r"second=0\.18215: expected latents scaled by 0\.13025"):
        Handover(first, second)


@pytest.mark.slow
def test_weights_of_half_precision_stay_so_in_the_run(folders, tmp_path):
    import diffusers
    import torch

    network = diffusers.UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    shutil.copytree(folders["sd1"], tmp_path / "half")
    network.to(torch.float16).save_pretrained(tmp_path / "half" / "unet")
    convert(published.find(tmp_path / "half"), str(tmp_path / "run"))
    stored = load_file(tmp_path / "run" / "frozen" / "unet.safetensors")
    assert {array.dtype.name for array in stored.values()} == {"float16"}
    params = Generator.load(str(tmp_path / "run")).params
    kernel = params["network"]["stem"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, stored["network/stem/kernel"].astype(np.float32))
