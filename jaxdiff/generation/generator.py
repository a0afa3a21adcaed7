"""Samples from a trained model, in Python::

generator = Generator.load("runs/digits")
images = generator(label=[3, 1, 4], seed=0, guidance=2.0)  # uint8 [3, 8, 8, 1]
images = generator(low_res=photo)  # of the size that the photo is enlarged to
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.core import FrozenDict

from jaxdiff import config as configs
from jaxdiff.codecs.identity import Identity
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.generation import checks, compiled, inputs
from jaxdiff.generation.model import SampledModel
from jaxdiff.generation.recipes import completing, sampled_by
from jaxdiff.generation.steps import OnStep
from jaxdiff.runs import classes, weights
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.stages import read_model_config
from jaxdiff.runs.workdir import CONFIG_FILE
from jaxdiff.sampling.grids.truncated import Truncated
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.typing import Params


class Generator(SampledModel):
    """A trained model that generates samples.

    Sample i is a function of (parameters, seed, i, its conditions): neither the number of samples nor the batch size
    changes its noise.
    """

    @classmethod
    def load(
        cls,
        workdir: str,
        *,
        step: int | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        sampler: str | None = None,
        packages: Sequence[str] = (),
        guiding_model: str | tuple[str, int] | None = None,
        with_weights: bool = True,
    ) -> "Generator":
        """The EMA of a training run.

        Args:
          workdir: the run's folder, with its ``config.json`` and checkpoints.
          step: of the checkpoint; the latest if None.
          overrides: (path, text) pairs that change the stored config, ``("sampling.steps", "10")``.
          sampler: the name of one of the run's `Experiment.recipes`, or of a class in `jaxdiff.sampling.samplers`,
            which then replaces the recipe's sampler: "heun", "Ddim(eta=1.0)". Steps and guidance stay, unless the
            recipe is a `Preset`.
          packages: packages other than jaxdiff whose classes the stored config may build.
          guiding_model: the folder of a weaker model for `Autoguidance`, or (folder, step); an early step of the
            same run serves well.
          with_weights: False for a generator without parameters, which checks requests and generates nothing; the
            weights of large models take long to read.
        """
        restored = cls._restored if with_weights else cls._outlined
        config = read_model_config(workdir)
        experiment = sampled_by(sampler, config, ("jaxdiff", *packages), overrides)
        mesh = experiment.mesh.make()
        checks.check_experiment(experiment, mesh)
        generator = restored(experiment, workdir, mesh, step, "--workdir")
        if guiding_model is None:
            return generator
        folder, guiding_step = (guiding_model, None) if isinstance(guiding_model, str) else guiding_model
        exists = (epath.Path(folder).expanduser() / CONFIG_FILE).exists()
        expect(
            exists,
            "guiding_model",
            folder,
            "the folder of a training run",
            "give one",
            f"no {CONFIG_FILE} in it",
        )
        other: Experiment = configs.build(read_model_config(folder), packages=("jaxdiff", *packages))
        return generator.guided_by(restored(other, folder, mesh, guiding_step, "guiding_model"))

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        params: Params,
        mesh: jax.sharding.Mesh,
        frozen: Mapping[str, Params] = FrozenDict(),
        class_names: tuple[str, ...] = (),
    ) -> "Generator":
        """The generator of an experiment.

        Args:
          params: the parameters of its task, untrained ones included; None for checks without weights.
          frozen: trees by the names in the `frozen` of `Sampleable.for_samples`; there may be others.
          class_names: names of the classes, in the order of their labels; empty for numbers only.
        """
        task, recipe = experiment.sampled, experiment.recipe
        full = params if params is None else task.full_params(params, frozen)
        codec = {name: tree for name, tree in frozen.items() if name in task.codec.frozen}
        denoiser = task.denoiser.with_class_names(class_names)
        return cls(denoiser, full, recipe, tuple(task.image_shape), mesh, codec=task.codec, frozen=codec)

    @classmethod
    def _restored(
        cls, experiment: Experiment, workdir: str, mesh: jax.sharding.Mesh, step: int | None, flag: str
    ) -> "Generator":
        task = experiment.sampled.for_samples()
        frozen = weights.load(task.frozen, mesh, epath.Path(workdir).expanduser())
        task.check_frozen(frozen)
        params = restore_params(experiment, workdir, mesh, step, flag=flag)
        return cls.of(experiment, params, mesh, frozen, classes.read(workdir) or ())

    @classmethod
    def _outlined(cls, experiment: Experiment, workdir: str, mesh: jax.sharding.Mesh, *_: Any) -> "Generator":
        return cls.of(experiment, None, mesh, class_names=classes.read(workdir) or ())

    def guided_by(self, guiding_model: SampledModel) -> "Generator":
        """This generator with a guiding model, whose network, parameterization and process are its own.

        Raises:
          UserError: the guiding model has another shape of data, other classes, or a condition that this model lacks.
        """
        same, images = guiding_model.data_shape == self.data_shape, f"images of {self.image_shape}"
        fix = "use a guiding model for images of the same shape"
        expect(same, "guiding_model", guiding_model.image_shape, images, fix)
        known = self.denoiser.conditioner.conditions
        expected = f"a model whose conditions are {', '.join(known) or 'none'}"
        for name in guiding_model.denoiser.conditioner.conditions:
            expect(
                name in known, "guiding_model", name, expected, "use a guiding model with the same conditions"
            )
        checks.check_class_names("guiding_model", [self.denoiser, guiding_model.denoiser])
        return dataclasses.replace(self, guiding_model=guiding_model)

    def __call__(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        negative: Mapping[str, Any] | None = None,
        noise: np.ndarray | None = None,
        draws: np.ndarray | None = None,
        noisy: np.ndarray | None = None,
        known: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        image_size: tuple[int, int] | None = None,
        first: int = 0,
        on_step: OnStep | None = None,
        rounded: bool = True,
        **conditions: Any,
    ) -> np.ndarray:
        """Generate samples.

        Args:
          n: number of samples; may be left out if a condition, `noise` or `known` gives it.
          seed: sample i of a seed is always the same.
          guidance: guidance scale instead of the recipe's; 1 is the conditional model. A scale for each of several
            conditions means `PerCondition`.
          negative: conditions to guide away from, instead of no condition.
          noise: standard normal data [n, *data_shape] to start from, such as those of `invert`; drawn if None.
          draws: standard normal data [steps, n, *data_shape] that a stochastic sampler adds, one for each of its
            steps but the last, which leads to clean data and adds none; drawn if None.
          noisy: noisy data [n, *data_shape] to continue from, with a recipe that starts below a time.
          known: stored images to complete, one for each sample or one for all; instead of pixels known by conditions.
            Together with the mask they are the value of a `PartialImage` or `MaskedImage` that is left out.
          mask: True where pixels are generated, [height, width] or [..., height, width, 1 or channels].
          image_size: (height, width), if other than in training; conditions that are images imply it.
          first: number of the first sample; ``first=256`` continues a call for samples 0 to 255 of the same seed.
          on_step: called after steps, with previews.
          rounded: whether images are bytes; otherwise the decoder's floats, with 0 to 255 as -1 to 1.
          **conditions: for each condition of the model one value per sample, one value for all, or None for its
            null; in a list of values, None is the null of one sample. A condition with a default may be left out. One
            without a null (`null="none"`) is shown in every branch of guidance. A class is a number, or its name.

        Returns:
          Samples in the stored type, uint8 [n, height, width, channels] for images. Known pixels are returned
          unchanged: those of `known`, or else those known by a condition, such as the opaque ones of a `PartialImage`.
          With `Recipe.until` noisy data, float32 [n, *data_shape].

        Raises:
          UserError: conditions that the model lacks, needs, or that are out of range; a sample that is not finite.
        """
        whole_number = isinstance(first, int | np.integer) and first >= 0
        expect(whole_number, "first", first, "a whole number >= 0", "give the number of the first sample")
        conditions, known, mask = inputs.filled(self.denoiser.conditioner, conditions, known, mask)
        sized = self._sized(image_size, conditions)
        given = sized._lengths(noise, noisy, known)
        request, n = sized._request(n, conditions, negative, *given[:1])
        recipe = sized._recipe(guidance, negative)
        for name, value in (("noise", noise), ("noisy", noisy)):
            if value is not None:
                data = inputs.images(name, value, n, sized.data_shape, np.floating)
                request = request._replace(**{name: data})
        if known is not None or mask is not None:
            for name, value in (("known", known), ("mask", mask)):
                expect(value is not None, name, None, "known images together with a mask", "give both")
            images = inputs.images("known", known, n, sized.image_shape, sized._stored_kind)
            request = request._replace(known=images, mask=inputs.mask(mask, n, sized.image_shape))
        if draws is not None:
            request = request._replace(draws=sized._draws(recipe, draws, n))
        drawn = request
        if request.mask is not None and sized._replaces(known is not None):
            recipe = completing(recipe)
        else:
            drawn = request._replace(known=None, mask=None)
        finish = (sized.codec if rounded else Identity()).stored if recipe.until is None else np.asarray
        samples = sized._generated(recipe, drawn, n, seed, first, finish, on_step)
        if request.mask is None or recipe.until is not None:
            return samples
        # A codec may lose detail on the way to data and back; known pixels lose none.
        whole = request.known if request.known.dtype == samples.dtype else sized.codec.stored(request.known)
        return np.where(request.mask, samples, whole)

    def number(self, n: int | None = None, noise: np.ndarray | None = None, **conditions: Any) -> int:
        """Number of samples that a call with these arguments makes; as for generating."""
        return self._request(n, conditions, None, *self._lengths(noise)[:1])[1]

    def _lengths(self, *arrays: np.ndarray | None) -> list[int]:
        """Lengths of those arrays that have a value for each sample."""
        return [len(each) for each in arrays if each is not None and np.ndim(each) == self._rank]

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
        """DDIM inversion: the noise from which the sampler `Ddim` generates given images (``generator(noise=...)``).

        All pixels are inverted alike, also those known by a condition.

        Args:
          images: stored images, uint8 [n, height, width, channels].
          iterations: 0 is exact in the limit of many steps; each iteration costs one more call of the model at each
            step, and is closer to the exact inverse. See `jaxdiff.sampling.inversion`.
          seed, guidance, negative, image_size, **conditions: as for generating.

        Returns:
          float32 [n, *data_shape], standard normal for a good model.
        """
        sized = self._sized(image_size, conditions)
        request, n = sized._request(len(images), conditions, negative)
        request = request._replace(
            images=inputs.images("images", images, n, sized.image_shape, sized._stored_kind)
        )
        recipe = sized._recipe(guidance, negative)
        make = functools.partial(compiled.noise_of, sized._static, recipe, iterations, sized._trees)
        return sized._in_batches(make, request, n, seed)

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
        noise: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        image_size: tuple[int, int] | None = None,
        on_step: OnStep | None = None,
        **conditions: Any,
    ) -> np.ndarray:
        """Image editing: given images, changed towards conditions.

        The images are diffused to a noise level, and sampled from there (Meng et al. 2022, "SDEdit"). With `before`,
        the noise is not drawn: it is the DDIM inversion of the images under these conditions (Song et al. 2021,
        section 4.3), and whatever the conditions do not change stays as it is.

        Args:
          images: stored images, uint8 [n, height, width, channels], or one for all samples.
          strength: fraction of the recipe's steps that are taken: near 0 the images stay, 1 keeps hardly more of them
            than their noise.
          before: conditions that describe the images as they are.
          iterations: of the inversion, see `invert`.
          noise: standard normal data [n, *data_shape] with which the images are diffused; drawn if None.
          mask: True where pixels may change; all others are returned unchanged. Without one, pixels known by a
            condition stay, as in generating.
          seed, guidance, negative, image_size, on_step, **conditions: as for generating.

        Returns:
          uint8 images [n, height, width, channels].
        """
        if before is not None:
            sampler, fix = self.recipe.sampler, "use Ddim (--sampler ddim), which the inversion undoes"
            expect(
                isinstance(sampler, Ddim), "sampling.sampler", sampler, "Ddim with conditions `before`", fix
            )
        fix = "give 0 < strength <= 1"
        expect(0 < strength <= 1, "strength", strength, "a fraction of the steps in (0, 1]", fix)
        conditioner = self.denoiser.conditioner
        if before is not None:
            before = inputs.filled(conditioner, before, images, mask)[0]
        conditions, _, mask = inputs.filled(conditioner, conditions, images, mask)
        grid = Truncated(self.recipe.grid, strength)
        method = self.recipe.inpainting and self.recipe.inpainting.from_data()
        recipe = dataclasses.replace(self.recipe, grid=grid, initial="process", inpainting=method)
        late = dataclasses.replace(self._sized(image_size, conditions), recipe=recipe)
        request, n = late._request(
            None, conditions, negative, len(images) if np.ndim(images) == late._rank else 1
        )
        originals = inputs.images("images", images, n, late.image_shape, late._stored_kind)
        shown = late._encoded(originals, n, seed) / late._first_level()  # as it is inside the initial noise
        if before is not None:
            expect(noise is None, "noise", "...", "no noise where it is that of an inversion", "leave it out")
            noise = late.invert(originals, seed=seed, iterations=iterations, guidance=1.0, **before)
        elif noise is None:
            noise = shown + late._noise(n, seed)
        else:
            noise = shown + inputs.images("noise", noise, n, late.data_shape, np.floating)
        unknown = request.mask if mask is None else inputs.mask(mask, n, late.image_shape)
        # Where known pixels replace predictions, the recipe itself adds them to the noise.
        if unknown is not None and late._replaces(mask is not None):
            data_mask = completing(recipe).data_mask(jax.numpy.asarray(unknown), late.data_shape)
            noise = np.where(data_mask, noise, noise - shown)
        known = None if mask is None else originals
        return late(
            n,
            seed=seed,
            guidance=guidance,
            negative=negative,
            noise=noise,
            known=known,
            mask=mask,
            on_step=on_step,
            **conditions,
        )
