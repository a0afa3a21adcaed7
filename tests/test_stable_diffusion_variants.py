"""Variants of Stable Diffusion as diffusers samples them: inpainting, InstructPix2Pix, the refiner, LoRA files."""

import json
import warnings

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.handover import Handover
from jaxdiff.generation.lora import with_lora
from jaxdiff.interop import published
from jaxdiff.runs.published import convert, convert_unet
from tests import pipelines
from tests.pipelines import as_torch, check_images
from tests.selection import some

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

TEXT = "a photo of a horse"
NOISE = np.random.default_rng(0).standard_normal((1, 16, 24, 4)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
OPTIONS = {"num_inference_steps": 4, "height": 32, "width": 48, "output_type": "np"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a kind's pipeline, and the run made of it."""
    root, found = tmp_path_factory.mktemp("pipelines"), {}

    def make(kind):
        if kind not in found:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                folder = pipelines.write(kind, root / kind)
            convert(published.find(folder), str(root / f"run_{kind}"))
            found[kind] = folder, str(root / f"run_{kind}")
        return found[kind]

    return make


def generator(run, steps=4, sampler="ddim"):
    return Generator.load(run, sampler=sampler, overrides=[("sampling.steps", str(steps))])


def pixels(image):
    return torch.tensor(image / 255.0).permute(2, 0, 1)[None].float()


@pytest.mark.slow
def test_known_pixels_and_a_mask_are_inpainting_of_diffusers(made):
    folder, run = made("inpaint")
    mask = np.zeros((32, 48), bool)
    mask[5:20, 10:33] = True
    pipe = pipelines.pipeline("inpaint", folder, "DDIMScheduler")
    expected = pipe(
        TEXT, image=2 * pixels(IMAGE) - 1, mask_image=torch.tensor(mask[None, None]).float(), strength=1.0,
        guidance_scale=5.0, latents=as_torch(NOISE), **OPTIONS,
    ).images  # fmt: skip
    found = generator(run)(
        text=TEXT, guidance=5.0, noise=NOISE, known=IMAGE[None], mask=mask, image_size=(32, 48)
    )
    np.testing.assert_array_equal(found[0][~mask], IMAGE[~mask])
    check_images(np.where(mask[..., None], found, 0), np.where(mask[..., None], expected, 0))


HOLES = np.repeat(np.repeat(np.random.default_rng(2).random((16, 24)) < 0.4, 2, 0), 2, 1)
HOLES[1::2] = HOLES[:, 1::2] = (
    True  # only the first pixel of a latent is known, so that all others are to be seen
)


def inpainting(folder, sampler):
    """diffusers' inpainting with the parts of a model that was not trained for it."""
    parts = pipelines.pipeline("sd1", folder, sampler).components
    pipe = diffusers.StableDiffusionInpaintPipeline(**{**parts, "requires_safety_checker": False})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize("width", [48, 32])
@pytest.mark.parametrize(
    ("sampler", "peer"),
    [
        ("ddim", "DDIMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        (None, "PNDMScheduler"),
        ("dpmsolver2m", "DPMSolverMultistepScheduler"),
    ],
)
def test_any_model_inpaints_as_in_diffusers(sampler, peer, width, made):
    """Known latents, too: their images are compared where the mask shows them."""
    folder, run = made("sd1")
    image, mask, noise = IMAGE[:, :width], HOLES[:, :width], NOISE[:, :, : width // 2]
    expected = inpainting(folder, peer)(
        TEXT, image=2 * pixels(image) - 1, mask_image=torch.tensor(mask[None, None]).float(), strength=1.0,
        guidance_scale=5.0, latents=as_torch(noise), **OPTIONS | {"width": width},
    ).images  # fmt: skip
    found = generator(run, sampler=sampler)(
        text=TEXT, guidance=5.0, noise=noise, known=image[None], mask=mask, image_size=(32, width)
    )
    np.testing.assert_array_equal(found[0][~mask], image[~mask])
    check_images(np.where(mask[..., None], found, 0), np.where(mask[..., None], expected, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "peer"), [("ddim", "DDIMScheduler"), ("euler", "EulerDiscreteScheduler")]
)
def test_an_edit_within_a_mask_is_inpainting_of_diffusers_with_a_strength(sampler, peer, made):
    folder, run = made("sd1")
    pipe = inpainting(folder, peer)
    module = __import__(type(pipe).__module__, fromlist=["x"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *shape, **options: as_torch(NOISE))
        expected = pipe(
            TEXT, image=2 * pixels(IMAGE) - 1, mask_image=torch.tensor(HOLES[None, None]).float(), strength=0.7,
            guidance_scale=5.0, **OPTIONS | {"num_inference_steps": 6},
        ).images  # fmt: skip
    found = generator(run, 6, sampler).edit(
        IMAGE[None], 0.7, text=TEXT, guidance=5.0, noise=NOISE, mask=HOLES, image_size=(32, 48)
    )
    check_images(np.where(HOLES[..., None], found, 0), np.where(HOLES[..., None], expected, 0))


@pytest.mark.slow
def test_two_scales_are_instruct_pix2pix_of_diffusers(made):
    folder, run = made("ip2p")
    pipe = pipelines.pipeline("ip2p", folder, "DDIMScheduler")
    expected = pipe(
        TEXT, image=pixels(IMAGE), guidance_scale=5.0, image_guidance_scale=1.5, latents=as_torch(NOISE),
        num_inference_steps=4, output_type="np",
    ).images  # fmt: skip
    given = {"source": IMAGE, "text": TEXT, "guidance": {"source": 1.5, "text": 5.0}, "noise": NOISE}
    check_images(generator(run)(**given), expected)


@pytest.mark.slow
def test_a_base_and_its_refiner_share_the_steps_as_in_diffusers(made):
    (base_folder, base_run), (folder, run) = made("xl"), made("refiner")
    base = pipelines.pipeline("xl", base_folder, "EulerDiscreteScheduler")
    refiner = pipelines.pipeline("refiner", folder, "EulerDiscreteScheduler")
    shared = {"num_inference_steps": 5, "guidance_scale": 5.0, "negative_prompt": "masterpiece"}
    latents = base(
        TEXT, denoising_end=0.6, output_type="latent", height=32, width=48, latents=as_torch(NOISE), **shared
    ).images
    expected = refiner(TEXT, image=latents, denoising_start=0.6, output_type="np", **shared).images
    models = (generator(each, 5, "euler") for each in (base_run, run))
    given = {"guidance": 5.0, "negative": {"text": "masterpiece"}, "noise": NOISE, "image_size": (32, 48)}
    check_images(Handover(*models, 0.6)(text=TEXT, **given), expected)


@pytest.mark.slow
def test_a_control_net_on_the_command_line_is_that_of_diffusers(made, tmp_path):
    folder, run = made("sd1")
    parts = pipelines.parts_of("sd1")
    control = diffusers.ControlNetModel.from_unet(
        parts["unet"], conditioning_embedding_out_channels=(16, 32), load_weights_from_unet=False
    )
    pipelines.randomise(control, 7).save_pretrained(tmp_path / "edges")
    base = pipelines.pipeline("sd1", folder, "DDIMScheduler")
    pipe = diffusers.StableDiffusionControlNetPipeline(**base.components, controlnet=control)
    expected = pipe(
        TEXT, image=pixels(IMAGE), guidance_scale=5.0, controlnet_conditioning_scale=0.7, latents=as_torch(NOISE),
        num_inference_steps=4, output_type="np",
    ).images  # fmt: skip
    PIL.Image.fromarray(IMAGE).save(tmp_path / "edges.png")
    np.save(tmp_path / "noise.npy", NOISE)
    command = [
        "--workdir", run, "--control-net", f"edges={tmp_path / 'edges'}:0.7",
        "--image", f"edges={tmp_path / 'edges.png'}",
        "--text", TEXT, "--guidance", "5", "--sampler", "ddim", "--steps", "4", "--size", "32x48",
        "--noise", str(tmp_path / "noise.npy"), "--out", str(tmp_path / "out.npy"),
    ]  # fmt: skip
    sampling.run(sample.parse(command))
    check_images(np.load(tmp_path / "out.npy"), expected)


@pytest.mark.slow
def test_a_control_net_of_another_model_is_named_with_its_flag(made, tmp_path):
    unet = pipelines.parts_of("xl")["unet"]
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    control.save_pretrained(tmp_path / "edges")
    PIL.Image.fromarray(IMAGE).save(tmp_path / "edges.png")
    command = [
        "--workdir", made("sd1")[1], "--control-net", f"edges={tmp_path / 'edges'}", "--text", TEXT,
        "--image", f"edges={tmp_path / 'edges.png'}", "--out", str(tmp_path / "out.npy"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--control-net=edges=.*made for this model.*Fix: use the model"):
        sampling.run(sample.parse(command))


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(("refiner", "inpaint", "ip2p", "upscaler"), ("refiner",)))
def test_the_folders_of_variants_come_back_and_open_in_diffusers(kind, made, tmp_path):
    folder, run = made(kind)
    pipelines.export_folder(run, tmp_path / "out")
    for file in sorted(folder.rglob("*.safetensors")):
        found, expected = load_file(tmp_path / "out" / file.relative_to(folder)), load_file(file)
        assert len(found) == len(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in found.keys() & expected.keys())
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(opened).__name__ == pipelines.KINDS[kind].pipeline
    end = "_2" if kind == "refiner" else ""
    tokenizer, encoder = (getattr(opened, part + end) for part in ("tokenizer", "text_encoder"))
    assert encoder.config.pad_token_id == tokenizer.pad_token_id
    if kind == "upscaler":
        assert opened.low_res_scheduler.config.beta_end == 1e-9
        given, found = (
            json.loads((each / "low_res_scheduler/scheduler_config.json").read_text())
            for each in (folder, tmp_path / "out")
        )
        assert found == {"_class_name": "DDPMScheduler", **given}


@pytest.mark.slow
def test_a_small_image_is_enlarged_as_by_the_upscaler_of_diffusers(made):
    """Its noise is too weak to be seen here; `tests/conditioning/test_latent.py` checks noise."""
    folder, run = made("upscaler")
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = diffusers.DDIMScheduler.from_config(pipelines.DDIM_V)
    low_res = diffusers.DDPMScheduler.from_config(pipelines.KINDS["upscaler"].low_res)
    parts = pipelines.parts_of("upscaler")
    pipe = diffusers.StableDiffusionUpscalePipeline(
        tokenizer=tokenizer, scheduler=scheduler, low_res_scheduler=low_res, **parts
    )
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "np"}
    small = IMAGE[:16, :24]
    expected = pipe(
        TEXT, image=2 * pixels(small) - 1, latents=as_torch(NOISE), noise_level=20, **options
    ).images
    check_images(generator(run)(text=TEXT, source=small, guidance=5.0, noise=NOISE), expected)


def low_rank(rank, out, into, seed):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=shape).astype(np.float32) for shape in ((out, rank), (rank, into)))


@pytest.fixture
def lora(tmp_path):
    """A file of kohya for a matrix of the U-Net and one of the text encoder, and what it adds to them."""
    names = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (64, 64),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (64, 64),
    }
    tensors, added = {}, {}
    for seed, (name, shape) in enumerate(names.items()):
        up, down = low_rank(2, *shape, seed)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.float32(1.0)}
        tensors |= {f"{name}.{part}": np.asarray(array) for part, array in parts.items()}
        added[name] = 0.5 * up @ down
    save_file(tensors, tmp_path / "style.safetensors")
    return str(tmp_path / "style.safetensors"), added


def written(run, folder):
    pipelines.export_folder(run, folder)
    return (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"),
        load_file(folder / "text_encoder" / "model.safetensors"),
    )


@pytest.mark.slow
def test_lora_files_are_added_to_the_weights_that_they_name(made, lora, tmp_path):
    folder, run = made("sd1")
    file, added = lora
    convert(published.find(folder), str(tmp_path / "run"), loras=[(file, 0.5), (file, -2.0)])
    before, after = written(run, tmp_path / "before"), written(str(tmp_path / "run"), tmp_path / "after")
    keys = (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "text_model.encoder.layers.1.self_attn.q_proj.weight",
    )
    for old, new, key, change in zip(before, after, keys, added.values(), strict=True):
        np.testing.assert_allclose(new[key] - old[key], -1.5 * change, atol=1e-5)
        assert all(np.array_equal(old[name], new[name]) for name in old.keys() - {key})


@pytest.mark.slow
def test_lora_files_when_sampling_are_those_of_the_conversion(made, lora, tmp_path):
    folder, run = made("sd1")
    file, _ = lora
    convert(published.find(folder), str(tmp_path / "run"), loras=[(file, 0.7)])
    merged, expected = with_lora(Generator.load(run), [(file, 0.7)]), Generator.load(str(tmp_path / "run"))
    leaves = (torch.utils._pytree.tree_leaves(model.params) for model in (merged, expected))
    for found, wanted in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.slow
def test_a_lora_of_another_model_is_refused_and_nothing_is_written(made, lora, tmp_path):
    folder, _ = made("xl")
    with pytest.raises(UserError, match=r"style\.safetensors.*expected shape \(2, 128\)"):
        convert(published.find(folder), str(tmp_path / "run"), loras=[(lora[0], 1.0)])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("prefix", some(("", "model.diffusion_model."), ("",)))
def test_another_unet_over_a_converted_run(prefix, made, tmp_path):
    folder, run = made("sd1")
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {prefix + name: array + 1 for name, array in tensors.items()}
    save_file(changed, tmp_path / "fast.safetensors")
    convert_unet(published.find(tmp_path / "fast.safetensors"), run, str(tmp_path / "run"))
    unet, text = written(str(tmp_path / "run"), tmp_path / "out")
    np.testing.assert_array_equal(unet["conv_in.weight"], tensors["conv_in.weight"] + 1)
    expected = written(run, tmp_path / "same")[1]
    assert all(np.array_equal(text[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_unet_of_another_model_is_refused(made, tmp_path):
    folder, _ = made("xl")
    with pytest.raises(UserError, match="expected the tensors of the config's network"):
        convert_unet(published.find(folder), made("sd1")[1], str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
