"""Karlo and Stable unCLIP from diffusers' folders: the same images, and the same files on the way back."""

import json
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff import sample
from jaxdiff.cli import exporting
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.stages import Stages
from jaxdiff.interop import unclip as files
from jaxdiff.runs import published_unclip
from tests import commands, unclip
from tests.pipelines import check_images

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own
slow = pytest.mark.slow

KARLO, VARIATION, STABLE, STABLE_VARIATION = unclip.KINDS
TEXTS = ["a photo of a horse", "an astronaut riding"]
RANDOM = np.random.default_rng(0)
PRIOR, DECODER, SUPER_RES, LATENTS, EMBEDDING = (
    RANDOM.standard_normal(shape).astype(np.float32)
    for shape in ((5, 2, 64), (6, 2, 16, 16, 3), (4, 2, 32, 32, 3), (2, 8, 8, 4), (2, 64))
)
PHOTO = np.kron(RANDOM.integers(0, 256, (5, 7, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
STEPS = {"prior": 5, "decoder": 6, "super_res": 4}
PEER_STEPS = {"decoder_num_inference_steps": 6, "super_res_num_inference_steps": 4, "output_type": "np"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline's folder of each kind."""
    root = tmp_path_factory.mktemp("unclip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {kind: unclip.write(kind, root / kind) for kind in unclip.KINDS}


@pytest.fixture(scope="module")
def runs(folders):
    """Staged runs made of them, each when it is first asked for."""

    class Runs(dict):
        def __missing__(self, kind):
            self[kind] = str(folders[kind].parent / f"run_{kind}")
            published_unclip.convert(files.find(folders[kind]), self[kind])
            return self[kind]

    return Runs()


def photograph():
    from PIL import Image

    return Image.fromarray(PHOTO)


@slow
@pytest.mark.parametrize("scales", [(4.0, 8.0), (1.0, 1.0)])
def test_images_of_texts_are_karlos(scales, folders, runs):
    pipe = unclip.pipeline(KARLO, folders[KARLO])
    options = {"prior_guidance_scale": scales[0], "decoder_guidance_scale": scales[1], **PEER_STEPS}
    with unclip.drawing(*PRIOR, *DECODER, *SUPER_RES):
        expected = pipe(TEXTS, prior_num_inference_steps=5, **options).images
    found = Stages.load(runs[KARLO])(
        text=TEXTS,
        steps=STEPS,
        guidance={"prior": scales[0], "decoder": scales[1]},
        noise={"prior": PRIOR, "decoder": DECODER, "super_res": SUPER_RES},
    )
    check_images(found, expected)


@slow
def test_variations_of_a_photograph_are_karlos(folders, runs):
    pipe = unclip.pipeline(VARIATION, folders[VARIATION])
    decoder, super_res = DECODER[:, :1], SUPER_RES[:, :1]
    with unclip.drawing(*decoder, *super_res):
        expected = pipe(photograph(), decoder_guidance_scale=8.0, **PEER_STEPS).images
    found = Stages.load(runs[VARIATION])(
        image=PHOTO,
        steps={"decoder": 6, "super_res": 4},
        guidance={"decoder": 8.0},
        noise={"decoder": decoder, "super_res": super_res},
    )
    check_images(found, expected)


@slow
@pytest.mark.parametrize(("scales", "level"), [((4.0, 5.0), 100), ((1.0, 1.0), 0)])
def test_images_of_texts_are_those_of_stable_unclip(scales, level, folders, runs):
    pipe = unclip.pipeline(STABLE, folders[STABLE])
    options = {"prior_guidance_scale": scales[0], "guidance_scale": scales[1], "noise_level": level}
    negative = "horses of masterpiece"
    guided = {"negative_prompt": [negative] * 2} if scales[1] > 1 else {}
    with unclip.drawing(*PRIOR, EMBEDDING, LATENTS):
        expected = pipe(
            TEXTS, prior_num_inference_steps=5, num_inference_steps=4, output_type="np", **options, **guided
        ).images
    found = Stages.load(runs[STABLE])(
        text=TEXTS,
        steps={"prior": 5, "image": 4},
        guidance={"prior": scales[0], "image": scales[1]},
        negative={"text": negative} if guided else None,
        levels={"image": (level + 1) / 1000},
        noise={"prior": PRIOR, "embedding": EMBEDDING, "image": LATENTS},
    )
    check_images(found, expected)


@slow
@pytest.mark.parametrize("text", [TEXTS[0], None])
def test_variations_of_a_photograph_are_those_of_stable_unclip(text, folders, runs):
    pipe = unclip.pipeline(STABLE_VARIATION, folders[STABLE_VARIATION])
    noise = {"embedding": EMBEDDING[:1], "image": LATENTS[:1]}
    with unclip.drawing(*noise.values()):
        expected = pipe(
            photograph(), text, num_inference_steps=4, guidance_scale=5.0, output_type="np"
        ).images
    given = {} if text is None else {"text": text}
    found = Stages.load(runs[STABLE_VARIATION])(
        image=PHOTO, steps=4, guidance={"image": 5.0}, noise=noise, **given
    )
    check_images(found, expected)


@slow
@pytest.mark.parametrize("kind", unclip.KINDS)
def test_a_run_comes_back_bit_for_bit_and_opens_in_diffusers(kind, folders, runs, tmp_path):
    import diffusers

    back = tmp_path / "back"
    exporting.export(runs[kind], str(back))
    for name in unclip.parts_of(kind):
        (file,) = (folders[kind] / name).glob("*.safetensors")
        theirs, ours = load_file(file), load_file(next((back / name).glob("*.safetensors")))
        # transformers saves some of its classes without the prefix that published files have.
        ours = {
            key if key in theirs else key.removeprefix("text_model."): value for key, value in ours.items()
        }
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    pipe = getattr(diffusers, kind).from_pretrained(back)
    for name, module in unclip.parts_of(kind).items():
        opened = getattr(pipe, name)
        assert type(opened) is type(module)
        for key, value in opened.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), module.state_dict()[key].numpy())
    again = str(tmp_path / "again")
    published_unclip.convert(files.find(back), again)
    for file in sorted(pathlib.Path(runs[kind]).rglob("frozen/*.safetensors")):
        other = pathlib.Path(again) / file.relative_to(runs[kind])
        assert other.read_bytes() == file.read_bytes()


@slow
def test_the_commands_are_the_functions(folders, tmp_path):
    run, out = tmp_path / "karlo", tmp_path / "x.npz"
    commands.run("convert", f"--from={folders[KARLO]}", f"--workdir={run}")
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    noise = {"prior": PRIOR, "decoder": DECODER, "super_res": SUPER_RES}
    for name, array in noise.items():
        np.save(tmp_path / f"{name}.npy", array)
    flags = [f"--noise={name}={tmp_path / name}.npy" for name in noise]
    commands.run(
        "sample", f"--workdir={moved}", *(f"--text={text}" for text in TEXTS), f"--out={out}", *flags,
        "--steps=prior=5,decoder=6,super_res=4", "--guidance=prior=4,decoder=8",
    )  # fmt: skip
    images = np.load(out)["images"]
    given = {"steps": STEPS, "guidance": {"prior": 4.0, "decoder": 8.0}, "noise": noise}
    # A command chooses XLA's kernels of convolutions itself, which round in another way than those here.
    off = np.abs(images.astype(int) - Stages.load(str(moved))(text=TEXTS, **given))
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.01


@slow
def test_a_photograph_takes_the_place_of_the_prior_on_the_command_line(runs, tmp_path):
    photograph().save(tmp_path / "photo.png")
    out = tmp_path / "x.npz"
    sample.main(
        [f"--workdir={runs[STABLE_VARIATION]}", f"--image=image={tmp_path / 'photo.png'}", f"--out={out}",
         "--level=image=0.3", "--steps=2", "--guidance=image=3"]
    )  # fmt: skip
    given = {"steps": 2, "guidance": {"image": 3.0}, "levels": {"image": 0.3}}
    np.testing.assert_array_equal(
        np.load(out)["images"], Stages.load(runs[STABLE_VARIATION])(image=PHOTO, **given)
    )


@slow
def test_each_condition_of_a_stage_has_its_scale_on_the_command_line(runs, tmp_path):
    out = tmp_path / "x.npz"
    sample.main(
        [f"--workdir={runs[KARLO]}", f"--condition=image={EMBEDDING[0].tolist()}", "--text=a horse", f"--out={out}",
         "--steps=2", "--guidance=decoder.image=3,decoder.text=2"]
    )  # fmt: skip
    stages = Stages.load(runs[KARLO])
    given = {"image": EMBEDDING[0], "text": "a horse", "steps": 2}
    images = stages(**given, guidance={"decoder": {"image": 3.0, "text": 2.0}})
    np.testing.assert_array_equal(np.load(out)["images"], images)
    assert np.any(images != stages(**given, guidance={"decoder": {"image": 2.0, "text": 3.0}}))


def one_line(error):
    text = str(error.value).splitlines()[0]
    assert ": expected " in text
    assert " Fix: " in text
    return text


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        (KARLO, lambda path: shutil.rmtree(path / "prior"), "folder prior"),
        (KARLO, lambda path: shutil.rmtree(path / "super_res_last"), "folder super_res_last"),
        (STABLE, lambda path: shutil.rmtree(path / "image_normalizer"), "folder image_normalizer"),
        (VARIATION, lambda path: shutil.rmtree(path / "image_encoder"), "folder image_encoder"),
        (KARLO, lambda path: (path / "decoder" / "config.json").unlink(), "decoder/config.json"),
    ],
)
def test_folders_without_a_network_are_refused(kind, damage, message, folders, tmp_path):
    path = tmp_path / "broken"
    shutil.copytree(folders[kind], path)
    damage(path)
    with pytest.raises(UserError) as error:
        files.find(path)
    assert message in one_line(error)


def change(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: change(path / "prior" / "config.json", num_layers=3), "expected the tensors"),
        (lambda path: change(path / "prior" / "config.json", norm_in_type="layer"), "norm_in_type='layer'"),
        (lambda path: change(path / "prior" / "config.json", embedding_dim=32), "hidden_size=64"),
        (lambda path: shutil.rmtree(path / "prior_scheduler"), "prior_scheduler"),
        (lambda path: shutil.rmtree(path / "tokenizer"), "tokenizer"),
    ],
)
def test_priors_that_do_not_fit_are_refused_and_nothing_is_written(damage, message, folders, tmp_path):
    path, run = tmp_path / "broken", tmp_path / "run"
    shutil.copytree(folders[KARLO], path)
    damage(path)
    with pytest.raises(UserError) as error:
        published_unclip.convert(files.find(path), str(run))
    assert message in one_line(error)
    assert not run.exists()


@slow
def test_impossible_requests_are_refused(runs, tmp_path):
    stages = Stages.load(runs[KARLO])
    noise = {"prior": PRIOR, "decoder": DECODER, "super_res": SUPER_RES}
    for given, message in (
        (
            {"noise": {"decoder": DECODER[:5]}},
            r"noise.decoder='float32.*: expected \[6, n, 16, 16, 3\] for 6 draws",
        ),
        ({"noise": {"prior": PRIOR[..., :3]}}, r"noise.prior=.*64"),
        ({"noise": {"first": PRIOR}}, "noise='first': expected a stage"),
        ({"steps": {"base": 3}}, "steps='base': expected a stage"),
        ({"steps": {"prior": 0}}, "steps.prior=0: expected a number of steps > 0"),
        (
            {"guidance": {"decoder": {"depth": 3.0}}},
            "guidance.decoder='depth': expected a condition of this stage",
        ),
        ({"guidance": {"text": 3.0}}, "guidance='text': expected a stage"),
        ({"levels": {"text": 0.1}}, "level=0.1: expected a condition with noise augmentation"),
        ({"size": 3}, "condition='size'"),
        ({"image": np.zeros(64, np.float32), "noise": {"prior": PRIOR}}, "the result of prior is given"),
        ({"image": np.zeros(3, np.float32), "steps": 2}, r"image=float32"),
        ({"image": PHOTO, "steps": 2}, "image: expected 2 values"),
    ):
        with pytest.raises(UserError, match=message):
            stages(**{"text": TEXTS, "steps": STEPS, **given})
    with pytest.raises(UserError, match="text=: expected a value"):
        stages(n=1)
    with pytest.raises(UserError, match="one of several stages"):
        Generator.load(runs[KARLO])
    with pytest.raises(UserError, match="an ordinary run"):
        Stages.load(f"{runs[KARLO]}/prior")
    out = f"--out={tmp_path / 'x.npz'}"
    np.save(tmp_path / "noise.npy", noise["prior"])
    for words, message in (
        ([f"--noise={tmp_path / 'noise.npy'}"], "--noise=.*the name of a stage"),
        (["--steps=many"], "--steps='many': expected a whole number"),
        (["--steps=prior=5,prior=6"], "the name of a stage, once"),
        (["--steps=prior=0"], "--steps prior='0': expected a whole number > 0"),
        (["--guidance=decoder.depth=3"], "decoder='depth': expected a condition of this stage"),
        (
            ["--guidance=decoder=3,decoder.text=2"],
            "--guidance decoder=.*one scale, or one for each condition",
        ),
        (["--lora=x.safetensors"], "--lora="),
        (["--edit=photo.png"], "--edit="),
        (["--config.sampling.steps=3"], "--config.sampling.steps"),
        (["--image=image=photo.png"], "an image encoder"),
    ):
        with pytest.raises(UserError, match=message):
            sample.main([f"--workdir={runs[KARLO]}", "--text=a horse", out, *words])
    with pytest.raises(UserError, match="NAME="):
        sample.main([f"--workdir={runs[KARLO]}/decoder", "--text=a horse", out, "--steps=decoder=3"])
