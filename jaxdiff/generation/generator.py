"""Images from a trained model, in Python::

generator = Generator.load("runs/digits")
images = generator(label=[3, 1, 4], seed=0, guidance=2.0)  # uint8 [3, 8, 8, 1]
images = generator(low_res=photo)  # of the size that the photo is enlarged to
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.overrides import override
from jaxdiff.data import images as pictures
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import require
from jaxdiff.experiment import Experiment
from jaxdiff.generation import checks as feasible
from jaxdiff.generation import compiled as programs
from jaxdiff.generation import inputs
from jaxdiff.generation.compiled import GenerationInputs, StaticArgs
from jaxdiff.runs.restore import parameters_of
from jaxdiff.runs.workdir import CONFIG_FILE, read_config
from jaxdiff.sampling.grids.truncated import Truncated
from jaxdiff.sampling.loop import ends, fold_in, noise_like
from jaxdiff.sampling.modifiers.inpainting import Replacement
from jaxdiff.sampling.recipe import PRIOR, Recipe
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A trained denoiser with a recipe for sampling it.

    Image i is a function of (parameters, seed, i, its conditions): neither the number of images nor the batch that
    it is made in changes its noise.

    Attributes:
      denoiser, params: the model.
      recipe: sampler, grid, steps and guidance.
      image_shape: (height, width, channels) of the images; see `of_size` for others.
      mesh: the devices that share a batch.
      batch_size: the most images that are made at once.
      guide: another model, for `Autoguidance`; see `guided_by`.
    """

    denoiser: Denoiser
    params: Params
    recipe: Recipe
    image_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh
    batch_size: int = 256
    guide: "Generator | None" = None

    @classmethod
    def load(
        cls,
        workdir: str,
        *,
        step: int | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        packages: Sequence[str] = (),
        guide: str | tuple[str, int] | None = None,
    ) -> "Generator":
        """The averaged weights of a training run.

        Args:
          workdir: the run's folder, with its ``config.json`` and checkpoints.
          step: which checkpoint; the newest if not given.
          overrides: (path, text) pairs that change the stored config, ``("sampling.steps", "10")``.
          packages: packages besides jaxdiff whose classes the stored config may make.
          guide: the folder of a weaker model for `Autoguidance`, or (folder, step). With the same folder, an early
            step is one.
        """
        config = read_config(workdir)
        for path, text in overrides:
            override(config, path, text, packages=("jaxdiff", *packages))
        experiment = configs.build(config, packages=("jaxdiff", *packages))
        mesh = experiment.mesh.make()
        generator = cls.of(experiment, parameters_of(experiment, workdir, mesh, step), mesh)
        if guide is None:
            return generator
        folder, guide_step = (guide, None) if isinstance(guide, str) else guide
        exists = (epath.Path(folder).expanduser() / CONFIG_FILE).exists()
        require(exists, "guide", folder, f"there is no {CONFIG_FILE}", "give the folder of a training run")
        other = configs.build(read_config(folder), packages=("jaxdiff", *packages))
        return generator.guided_by(
            cls.of(other, parameters_of(other, folder, mesh, guide_step, flag="guide"), mesh)
        )

    @classmethod
    def of(cls, experiment: Experiment, params: Params, mesh: jax.sharding.Mesh) -> "Generator":
        """The generator of an experiment with given weights."""
        return cls(experiment.task.denoiser, params, experiment.sampling, experiment.task.image_shape, mesh)

    def guided_by(self, guide: "Generator") -> "Generator":
        """This generator with another model as its guide, whose network, parameterization and process are its own.

        Raises:
          UserError: the guide makes images of another shape, or has a condition that this model lacks.
        """
        require(
            guide.image_shape == self.image_shape, "guide", guide.image_shape,
            f"its images are no {self.image_shape}", "take a guide for images of the same shape",
        )  # fmt: skip
        for name in guide.denoiser.conditioner.conditions:
            require(
                name in self.denoiser.conditioner.conditions, "guide", name, "the guided model lacks this condition",
                "take a guide with the same conditions",
            )  # fmt: skip
        return dataclasses.replace(self, guide=guide)

    def of_size(self, height: int, width: int) -> "Generator":
        """The same for images of another size than training's, which most convolutional networks can make.

        Raises:
          UserError: a network or a condition has no use for this size; nothing is compiled to find out.
        """
        shape = (height, width, self.image_shape[2])
        if shape == self.image_shape:
            return self
        for model in self._models:
            feasible.check_shape(model.denoiser, model.params, shape, model.image_shape)
        return dataclasses.replace(self, image_shape=shape)

    def check(self) -> None:
        """Raise `UserError` where the recipe asks for what is not there, such as a guide; before anything is made."""
        feasible.check_guidance(self.recipe, self._denoisers)

    def __call__(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        negative: Mapping[str, Any] | None = None,
        noise: np.ndarray | None = None,
        known: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        image_size: tuple[int, int] | None = None,
        first: int = 0,
        **conditions: Any,
    ) -> np.ndarray:
        """Make images.

        Args:
          n: how many; may be left out if a condition, `noise` or `known` tells.
          seed: image i of a seed is always the same.
          guidance: guidance scale instead of the recipe's; 1 is the conditional model itself. With a scale for each
            of several conditions, guidance is `PerCondition`.
          negative: conditions to be guided away from, instead of no condition.
          noise: standard normal images to begin with, such as `invert` gives; drawn if not given.
          known: uint8 images to be completed, one for each or one for all; in place of what conditions know.
          mask: True where pixels are to be made, [height, width] or [..., height, width, 1 or channels].
          image_size: (height, width), if not training's; conditions that are images tell it themselves.
          first: number of the first image; ``first=256`` continues a call for images 0 to 255 of the same seed.
          **conditions: for each condition of the model one value per image, one value for all, or None for its null;
            in a list of values, None for the null of one image. One that has a default may be left out; one without a
            null (`null="none"`) is shown in every branch of guidance.

        Returns:
          uint8 images [n, height, width, channels]. Known pixels are returned as they came: those of `known`, or else
          those that a condition knows, such as the opaque ones of a `PartialImage`.

        Raises:
          UserError: conditions that the model lacks, needs, or that are out of range; an image that is not finite.
        """
        sized = self._sized(image_size, conditions)
        given = [len(images) for images in (noise, known) if images is not None and np.ndim(images) == 4]
        rows, n = sized._rows(n, conditions, negative, *given[:1])
        recipe = sized._recipe(guidance, negative)
        if noise is not None:
            rows = rows._replace(noise=inputs.images("noise", noise, n, sized.image_shape, np.floating))
        if known is not None or mask is not None:
            for name, value in (("known", known), ("mask", mask)):
                require(value is not None, name, None, "known images and a mask belong together", "give both")
            images = pictures.to_float(inputs.images("known", known, n, sized.image_shape, np.uint8))
            rows = rows._replace(known=images, mask=inputs.mask(mask, n, sized.image_shape))
        if rows.mask is not None:
            recipe = dataclasses.replace(recipe, inpainting=recipe.inpainting or Replacement())
        make = functools.partial(programs.generate, sized._program, recipe, sized._params)
        return pictures.to_uint8(sized._in_batches(make, rows, n, seed, first))

    def invert(
        self,
        images: np.ndarray,
        *,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        negative: Mapping[str, Any] | None = None,
        iterations: int = 0,
        image_size: tuple[int, int] | None = None,
        **conditions: Any,
    ) -> np.ndarray:
        """The noise from which ``generator(noise=...)`` makes given images, when the recipe's sampler is `Ddim`.

        All pixels are inverted alike, also those that a condition knows.

        Args:
          images: uint8 [n, height, width, channels].
          iterations: 0 is exact for many steps; each iteration is one more call of the model at each step, and
            nearer to the exact inverse. See `jaxdiff.sampling.inversion`.
          seed, guidance, negative, image_size, **conditions: as for making images.

        Returns:
          float32 [n, height, width, channels], standard normal if the model is good.
        """
        sized = self._sized(image_size, conditions)
        rows, n = sized._rows(len(images), conditions, negative)
        whole = inputs.images("images", images, n, sized.image_shape, np.uint8)
        rows = rows._replace(images=pictures.to_float(whole))
        recipe = sized._recipe(guidance, negative)
        make = functools.partial(programs.noise_of, sized._program, recipe, iterations, sized._params)
        return sized._in_batches(make, rows, n, seed)

    def edit(
        self,
        images: np.ndarray,
        strength: float = 0.6,
        *,
        seed: int = 0,
        before: Mapping[str, Any] | None = None,
        iterations: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        negative: Mapping[str, Any] | None = None,
        mask: np.ndarray | None = None,
        image_size: tuple[int, int] | None = None,
        **conditions: Any,
    ) -> np.ndarray:
        """Given images, changed towards conditions.

        They are diffused to a noise level, and sampled from there (Meng et al. 2022, "SDEdit"). With `before`, the
        noise is not drawn but that from which `Ddim` makes the images under these conditions (`invert`; Song et al.
        2021, section 4.3): what the conditions do not change stays as it is.

        Args:
          images: uint8 [n, height, width, channels], or one for all.
          strength: share of the recipe's steps that are taken: near 0 the images stay, 1 leaves hardly more of them
            than their noise.
          before: conditions that describe the images as they are.
          iterations: of the inversion, see `invert`.
          mask: True where pixels may change; all others are returned as they came. Without one, what a condition
            knows stays, as in making images.
          seed, guidance, negative, image_size, **conditions: as for making images.

        Returns:
          uint8 images [n, height, width, channels].
        """
        require(
            0 < strength <= 1, "strength", strength, "it is a share of the steps", "give 0 < strength <= 1"
        )
        recipe = dataclasses.replace(self.recipe, grid=Truncated(self.recipe.grid, strength))
        late = dataclasses.replace(self._sized(image_size, conditions), recipe=recipe)
        rows, n = late._rows(None, conditions, negative, len(images) if np.ndim(images) == 4 else 1)
        whole = inputs.images("images", images, n, late.image_shape, np.uint8)
        shown = pictures.to_float(whole) / late._first_level()  # as it is in what stands for noise
        if before is None:
            noise = shown + late._noise(n, seed)
        else:
            noise = late.invert(whole, seed=seed, iterations=iterations, guidance=1.0, **before)
        made = rows.mask if mask is None else inputs.mask(mask, n, late.image_shape)
        if made is not None:  # what is known is added to the noise where it stays
            noise = np.where(made, noise, noise - shown)
        known = None if mask is None else whole
        return late(
            n,
            seed=seed,
            guidance=guidance,
            negative=negative,
            noise=noise,
            known=known,
            mask=mask,
            **conditions,
        )

    def _first_level(self) -> np.float32:
        """``sigma / alpha`` where the recipe begins."""
        process = self.denoiser.process_of(self.params)
        alpha, sigma = process.signal(ends(self.recipe.grid(process, self.recipe.steps))[0])
        return np.float32(sigma / alpha)

    def _noise(self, n: int, seed: int) -> np.ndarray:
        """The noise that sampling draws for the first n images."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(n, dtype=np.uint32))
        return np.asarray(noise_like(fold_in(keys, PRIOR), jax.numpy.zeros((n, *self.image_shape))))

    def _in_batches(
        self, make: Callable, rows: GenerationInputs, n: int, seed: int, start: int = 0
    ) -> np.ndarray:
        require(0 <= seed < 2**32, "seed", seed, "it is not a 32-bit number", "give 0 to 4294967295")
        size = self._program_size(n)
        parts = []
        for first in range(0, n, size):
            index = np.arange(first, first + size, dtype=np.uint32)
            used = np.minimum(
                index, n - 1
            )  # the last batch is filled up with copies, which are cut off again
            chosen = jax.tree.map(lambda value, used=used: value[used], rows)
            numbers = index + np.uint32(start)
            parts.append(np.asarray(make(chosen, numbers, np.uint32(seed)))[: n - first])
        return np.concatenate(parts)

    def _sized(self, size: tuple[int, int] | None, conditions: Mapping[str, Any]) -> "Generator":
        return self.of_size(*inputs.size(self.denoiser.conditioner, conditions, self.image_shape, size))

    def _recipe(
        self, guidance: float | Mapping[str, float] | None, negative: Mapping[str, Any] | None
    ) -> Recipe:
        rule = self.recipe.guidance
        if isinstance(guidance, Mapping):
            rule = feasible.per_condition(rule, guidance, self.denoiser.conditioner)
        elif guidance is not None:
            rule = rule.with_scale(float(guidance))
        require(
            not negative or rule.scale != 1, "negative", negative,
            "guidance with scale 1 is off, and never looks at it", "give another guidance scale",
        )  # fmt: skip
        recipe = dataclasses.replace(self.recipe, guidance=rule)
        feasible.check_guidance(recipe, self._denoisers)
        return recipe

    def _rows(
        self, n: int | None, conditions: Mapping, negative: Mapping | None, otherwise: int = 1
    ) -> tuple[GenerationInputs, int]:
        conditioners: list[Any] = [model.denoiser.conditioner for model in self._models]
        fields, absent, n = inputs.fields(conditioners, n, conditions, self.image_shape, otherwise)
        other = {name: None for name in conditioners[0].conditions if conditioners[0].has_null(name)}
        other |= {name: value for name, value in conditions.items() if name not in other} | dict(
            negative or {}
        )
        instead, no_negative, _ = inputs.fields(conditioners, n, other, self.image_shape)
        known, mask = inputs.known(conditioners[0].conditions, fields, absent, self.image_shape)
        return GenerationInputs(fields, absent, instead, no_negative, known=known, mask=mask), n

    def _program_size(self, n: int) -> int:
        """Rows of a compiled batch: a power of two, for few compilations, rounded up to divide over the devices."""
        rows = math.prod(self.mesh.shape[axis] for axis in partitioning.BATCH_AXES)
        size = min(self.batch_size, 1 << (n - 1).bit_length())
        return -(-size // rows) * rows

    @property
    def _models(self) -> "list[Generator]":
        return [self] if self.guide is None else [self, self.guide]

    @property
    def _denoisers(self) -> tuple[Denoiser, ...]:
        return tuple(model.denoiser for model in self._models)

    @property
    def _params(self) -> tuple[Params, ...]:
        return tuple(model.params for model in self._models)

    @property
    def _program(self) -> StaticArgs:
        return StaticArgs(self._denoisers, self.image_shape, self.mesh)
