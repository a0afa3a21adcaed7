"""Buckets: which images share a batch, in which order, and what is cut off them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as configs
from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.data.buckets import LEFT_OUT, Buckets, sizes_of
from jaxdiff.data.classes import Labelled
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.mixture import Mixture
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import Cover, HorizontalFlip, covering
from jaxdiff.errors import UserError
from tests.data.pixels import noise

SMALL = Buckets(size=16, step=4, max_ratio=4.0)


@dataclasses.dataclass(frozen=True)
class Many:
    """Random images of many shapes."""

    n: int = 37
    image_shape = (None, None, 3)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        draw = np.random.default_rng(i)
        height, width = draw.integers(20, 80, 2)
        return {"image": noise(height, width, seed=i), "index": np.int32(i)}


def take(pipeline, batch_size, steps, *where):
    iterator = pipeline.batches(batch_size, *where)
    found = list(itertools.islice(iterator, steps))
    iterator.close()
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def a_pipeline(**options):
    buckets = dataclasses.replace(SMALL, position="random")
    low = Degrade("low_res", Downsample(2))
    return Pipeline(Many(), (HorizontalFlip(),), (low,), buckets=buckets, **options)


BATCH, STEPS = 8, 23  # 5 epochs


@pytest.fixture(scope="module")
def alone():
    """The batches of one uninterrupted process."""
    found = take(a_pipeline(), BATCH, STEPS, 3)
    assert len({batch["image"].shape for batch in found}) > 3
    return found


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_read_the_batches_of_one(alone, count, cache):
    parts = [take(a_pipeline(cache=cache), BATCH, STEPS, 3, 0, i, count) for i in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, alone)


@pytest.mark.parametrize(("start", "count", "threads"), [(1, 1, 0), (7, 4, 2), (12, 2, 1), (22, 1, 3)])
def test_a_run_resumed_within_an_epoch_reads_the_batches_of_an_uninterrupted_one(
    alone, start, count, threads
):
    for i in range(count):
        rows = slice(i * BATCH // count, (i + 1) * BATCH // count)
        rest = take(a_pipeline(threads=threads), BATCH, STEPS - start, 3, start, i, count)
        assert_same(rest, [{name: batch[name][rows] for name in batch} for batch in alone[start:]])


def test_each_batch_is_of_one_bucket_and_each_image_is_in_its_own(alone):
    assignment = SMALL.assign(sizes_of(Many()))
    for batch in alone:
        shape = batch["image"].shape[1:3]
        assert {SMALL.shapes[number] for number in assignment.bucket[batch["index"]]} == {shape}
        assert batch["low_res"].shape[1:3] == (shape[0] // 2, shape[1] // 2)


def test_every_image_comes_equally_often():
    """n steps are as many epochs as a batch has images, for n images."""
    for seed in (0, 5):
        batches = take(Pipeline(Many(), buckets=SMALL, threads=0), 4, Many().n, seed)
        counts = np.bincount(np.concatenate([batch["index"] for batch in batches]), minlength=Many().n)
        assert counts.tolist() == [4] * Many().n


def test_within_a_bucket_no_image_returns_before_all_others_have_come():
    seen = {}
    for batch in take(Pipeline(Many(), buckets=SMALL, threads=0), 4, 30, 0):
        seen.setdefault(batch["image"].shape, []).extend(batch["index"].tolist())
    sizes = {(*group.shape, 3): len(group.indices) for group in SMALL.assign(sizes_of(Many())).groups()}
    for (_, *shape), order in seen.items():
        n = sizes[tuple(shape)]
        for first in range(0, len(order) - n + 1, n):
            assert len(set(order[first : first + n])) == n


def test_buckets_are_spread_evenly_over_the_steps():
    counts = {group.shape: len(group.indices) for group in SMALL.assign(sizes_of(Many())).groups()}
    shapes = [batch["image"].shape[1:3] for batch in take(Pipeline(Many(), buckets=SMALL), 4, 37, 1)]
    for shape, count in counts.items():
        for steps in range(1, 38):
            assert abs(shapes[:steps].count(shape) - steps * count / 37) < 2


def test_orders_differ_by_seed_and_epoch():
    orders = [
        tuple(
            np.concatenate([batch["index"] for batch in take(Pipeline(Many(), buckets=SMALL), 4, 30, seed)])
        )
        for seed in range(3)
    ]
    assert len(set(orders)) == 3


def test_one_bucket_is_the_pipeline_without_buckets_up_to_the_seed_of_its_order():
    square = Buckets(size=16, step=4, max_ratio=1.0)
    plain = Pipeline(Many(), conditions=(Cover(16, 16),), shuffle=False)
    assert_same(
        take(Pipeline(Many(), buckets=square, shuffle=False), 8, 9, 0),
        take(plain, 8, 9, 0),
    )


@pytest.mark.parametrize(
    ("size", "step", "ratio"), [(1024, 64, 2.0), (512, 64, 4.0), (64, 8, 1.5), (16, 16, 2)]
)
def test_shapes_are_multiples_of_the_step_within_area_and_ratio(size, step, ratio):
    shapes = Buckets(size, step, ratio).shapes
    assert (size, size) in shapes
    assert len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert (width, height) in shapes
        assert max(height, width) <= ratio * min(height, width)
        assert size**2 - step * max(height, width) < height * width <= size**2  # no step more would fit
    ratios = [height / width for height, width in shapes]
    assert ratios == sorted(ratios)


def test_an_image_goes_to_the_nearest_ratio():
    buckets = Buckets(512, 64, 3.0)
    draw = np.random.default_rng(0)
    sizes = draw.integers(100, 3000, (500, 2))
    shapes = np.array(buckets.shapes)
    distances = np.abs(np.log(sizes[:, :1] / sizes[:, 1:]) - np.log(shapes[:, 0] / shapes[:, 1]))
    assert np.array_equal(buckets.assign(sizes).bucket, distances.argmin(axis=1))


def painted(height, width):
    """An image whose red and green say where a pixel lies, as fractions of the height and the width."""
    down, across = (np.arange(side) + 0.5 for side in (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(255 * down / height)[:, None]
    image[..., 1] = np.rint(255 * across / width)[None]
    return image


@pytest.mark.parametrize("position", ["centre", "random"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((150, 400), (96, 128)),
        ((300, 200), (128, 64)),
        ((333, 500), (200, 200)),
        ((40, 50), (64, 96)),
        ((200, 100), (128, 64)),
    ],
)
def test_the_fields_state_what_was_cut_and_nothing_is_distorted(size, target, position):
    example = {"image": painted(*size), "index": np.int32(0)}
    for seed in range(4):
        found = Cover(*target, position)(example, np.random.default_rng(seed))
        assert found["image"].shape == (*target, 3)
        assert found["original_size"].tolist() == list(size)
        assert found["target_size"].tolist() == list(target)
        assert {found[name].dtype for name in ("original_size", "crop", "target_size")} == {
            np.dtype("float32")
        }
        scale = max(target[0] / size[0], target[1] / size[1])  # one factor for both axes
        for axis, channel in ((0, 0), (1, 1)):
            place = found["crop"][axis] + np.arange(target[axis]) + 0.5
            expected = 255 * place / (scale * size[axis])
            line = found["image"][..., channel].mean(axis=1 - axis)
            assert np.abs(line - expected)[2:-2].max() < 1.5
    resized = covering(size, target)
    if position == "centre":
        assert found["crop"].tolist() == [(resized[i] - target[i]) // 2 for i in (0, 1)]


def test_a_random_crop_reaches_both_ends_and_a_mirrored_one_is_stated_as_it_is():
    wide = {"image": painted(64, 80), "index": np.int32(0)}
    crops = [tuple(Cover(64, 64, "random")(wide, np.random.default_rng(i))["crop"]) for i in range(200)]
    assert {left for _, left in crops} == set(range(17))
    pipeline = Pipeline(_One(wide["image"]), (HorizontalFlip(1.0),), buckets=Buckets(64, 64, 1, "random"))
    batch = take(pipeline, 4, 1, 0)[0]
    for image, (_, left) in zip(batch["image"], batch["crop"], strict=True):
        np.testing.assert_array_equal(image, wide["image"][:, ::-1][:, int(left) : int(left) + 64])


@dataclasses.dataclass(frozen=True, eq=False)
class _One:
    image: np.ndarray
    image_shape = (None, None, 3)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"image": self.image, "index": np.int32(i)}


def test_what_is_cut_and_enlarged_is_counted():
    sizes = np.array([[16, 16], [32, 64], [8, 8], [16, 160], [0, 0]])
    found = Buckets(16, 16, 1.0).assign(sizes)
    assert found.bucket.tolist() == [0, 0, 0, 0, LEFT_OUT]
    np.testing.assert_allclose(found.scale[:4], [1, 0.5, 2, 1])
    np.testing.assert_allclose(found.cut[:4], [0, 0.5, 0, 0.9])
    chosen = Buckets(16, 16, 1.0, small="leave_out", max_cut=0.5).assign(sizes)
    assert chosen.bucket.tolist() == [0, 0, LEFT_OUT, LEFT_OUT, LEFT_OUT]


def test_a_bucket_without_images_is_none():
    groups = SMALL.assign(np.array([[30, 30], [40, 40], [60, 20]])).groups()
    assert [group.indices.tolist() for group in groups] == [[0, 1], [2]]
    assert len(SMALL.shapes) > 2


def test_small_images_and_rare_buckets_are_said_or_left_out():
    tiny = Buckets(64, 16, 2.0)
    notes = Pipeline(Many(), buckets=tiny).notes(12)
    assert "37 of 37 images" in notes[0]
    enlarged = sum(tiny.assign(sizes_of(Many())).scale > 1)
    assert notes[1].startswith(f"buckets: {enlarged} images are smaller than their bucket and are enlarged")
    counts = [len(group.indices) for group in tiny.assign(sizes_of(Many())).groups()]
    rare = [count for count in counts if count < 12]
    assert f"{len(rare)} have fewer images ({sum(rare)} in all) than a batch of 12" in notes[2]

    without = dataclasses.replace(tiny, rare="leave_out")
    assert len(Pipeline(Many(), buckets=without).prototypes(12)) == len(counts) - len(rare)
    assert len(Pipeline(Many(), buckets=without).notes(12)) == 2
    large = dataclasses.replace(tiny, small="leave_out")
    shown = {int(i) for batch in take(Pipeline(Many(), buckets=large), 4, 20, 0) for i in batch["index"]}
    assert shown
    assert not shown & set(np.flatnonzero(tiny.assign(sizes_of(Many())).scale > 1))
    assert Pipeline(Many()).notes(8) == []


def test_outside_of_training_batches_images_have_the_square_shape():
    pipeline = Pipeline(Many(), buckets=SMALL)
    assert pipeline.example()["image"].shape == (16, 16, 3)
    whole = pipeline.all()
    assert whole["image"].shape == (37, 16, 16, 3)
    assert np.array_equal(whole["index"], np.arange(37))
    assert np.array_equal(pipeline.stored().rows(np.array([3, 30]))["image"], whole["image"][[3, 30]])
    assert np.array_equal(whole["original_size"], sizes_of(Many()))
    assert {example["image"].shape[:2] for example in pipeline.prototypes(1)} == {
        group.shape for group in SMALL.assign(sizes_of(Many())).groups()
    }


@pytest.fixture
def folder(tmp_path):
    """Images of three shapes, one of them turned by its EXIF data, in two classes."""
    for i, (height, width) in enumerate([(40, 80), (80, 40), (50, 50), (40, 80)]):
        file = tmp_path / "ab"[i % 2] / f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
        file.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        Image.fromarray(noise(height, width, seed=i)).save(file, exif=exif)
    return tmp_path


def test_sizes_of_a_folder_are_those_of_the_decoded_images_also_if_wrapped(folder):
    source = ImageFolder(str(folder), None)
    examples = source.open()
    assert examples.image_shape == (None, None, 3)
    decoded = [examples[i]["image"].shape[:2] for i in range(4)]
    assert decoded[examples.files.index("b/1.jpg")] == (40, 80)
    assert list(map(tuple, examples.sizes())) == decoded
    labelled = Labelled(source, ("b", "a")).open()
    assert list(map(tuple, sizes_of(labelled))) == decoded
    mixed = Mixture((source, source), (1.0, 2.0)).open()
    assert list(map(tuple, sizes_of(mixed))) == [mixed[i]["image"].shape[:2] for i in range(len(mixed))]
    batches = take(Pipeline(source, buckets=SMALL), 2, 4, 0)
    assert {batch["image"].shape[1:3] for batch in batches} == {(12, 20), (16, 16)}


def test_an_unreadable_file_is_named_or_left_out(folder):
    (folder / "a" / "9.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a/9\.png: expected a readable image, got other data"):
        ImageFolder(str(folder), None).open().sizes()
    source = ImageFolder(str(folder), None, broken="skip", max_broken=0.5)
    examples = source.open()
    wrong = examples.files.index("a/9.png")
    assert examples.sizes()[wrong].tolist() == [0, 0]
    assert examples.broken == {"a/9.png"}
    batches = take(Pipeline(source, buckets=SMALL), 2, 8, 0)
    assert wrong not in {int(i) for batch in batches for i in batch["index"]}


def test_a_replaced_file_is_measured_anew(folder):
    file = folder / "a" / "0.png"
    examples = ImageFolder(str(folder), None).open()
    before = examples.sizes()[0].tolist()
    Image.fromarray(noise(31, 77)).save(file)
    assert before == [40, 80]
    assert examples.sizes()[0].tolist() == [31, 77]


def test_whole_images_without_buckets_are_refused_in_a_batch(folder):
    with pytest.raises(UserError, match="Fix: use a data set of one image size"):
        next(Pipeline(ImageFolder(str(folder), None)).batches(4, seed=0))


@pytest.mark.parametrize("source", [Tfds("digits"), "folder"])
def test_images_of_one_shape_are_refused(folder, source):
    source = ImageFolder(str(folder), 32) if source == "folder" else source
    with pytest.raises(UserError, match=r"expected images of many shapes, got all of .*source\.size=None"):
        next(Pipeline(source, buckets=SMALL).batches(4, seed=0))


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="expected images for at least one bucket, got none"):
        Pipeline(Many(), buckets=Buckets(1024, 64, small="leave_out")).notes(4)
    with pytest.raises(UserError, match=r"at least one bucket, got at most \d+ in one"):
        Pipeline(Many(), buckets=Buckets(16, 4, rare="leave_out")).notes(100)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 1000}, r"size=1000: expected a multiple of step=64, got 1000. Fix: use 960 or 1024"),
        ({"size": 32}, "use 64, or another step"),
        ({"step": 0}, "step"),
        ({"max_ratio": 0.5}, "max_ratio"),
        ({"max_cut": 1.5}, "max_cut"),
        ({"small": "drop"}, "small"),
        ({"rare": "drop"}, "rare"),
        ({"position": "top"}, "position"),
    ],
)
def test_fields_out_of_range_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Buckets(**fields).cover()


def test_a_config_takes_buckets_on_the_command_line(folder):
    config = describe(Pipeline(ImageFolder(str(folder), 32)))
    from jaxdiff.config.overrides import override

    for path, text in (("buckets", "jaxdiff.data.buckets:Buckets(size=32, step=8)"), ("source.size", "None"),
                       ("buckets.max_ratio", "3")):  # fmt: skip
        override(config, path, text)
    expected = Pipeline(ImageFolder(str(folder), None), buckets=Buckets(32, 8, 3.0))
    assert build(config) == expected
    assert build(from_json(to_json(config))) == expected
    assert json.loads(to_json(config))["buckets"]["step"] == 8
    assert configs.build(describe(expected)) == expected
