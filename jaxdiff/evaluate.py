"""Judge a trained model: how good its samples are, how diverse, and what it memorised.

    python -m jaxdiff.evaluate --workdir runs/digits

writes evaluation.json and evaluation.png into the run's folder and prints a table.
"""

import dataclasses
from collections.abc import Sequence

from jaxdiff import command
from jaxdiff.errors import UserError

DESCRIPTION = (
    "Judge a trained model on held-out data: writes evaluation.json and evaluation.png into the workdir."
)
LOG_SNRS = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Noise levels of the held-out loss."""


def parser() -> command.Parser:
    flags = command.Parser(
        description=DESCRIPTION, epilog="--config.evaluation.n=500 and the like change the stored config."
    )
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    flags.add_argument("--step", type=int, default=None, help="which checkpoint (default: the newest)")
    flags.add_argument(
        "--guide", default=None, metavar="FOLDER[:STEP]", help="a weaker model's run, for Autoguidance"
    )
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)

    from jaxdiff import config as configs
    from jaxdiff.distributed import runtime
    from jaxdiff.experiment import read_config
    from jaxdiff.overrides import override

    config = read_config(flags.workdir)
    packages = ("jaxdiff", *(name for name in flags.packages.split(",") if name))
    for path, text in overrides:
        override(config, path, text, packages=packages)
    experiment = configs.build(config, packages=packages)
    if experiment.evaluation is None:
        raise UserError(
            "config.evaluation=None: the run has no evaluation. Fix: pass --config.evaluation=module:Class"
        )
    runtime.start()

    from jaxdiff.generator import Generator

    guide = command.guide_run(flags.guide)
    generator = Generator.load(
        flags.workdir, step=flags.step, overrides=overrides, packages=packages[1:], guide=guide
    )
    generator.check()
    print(evaluate(experiment, generator, flags.workdir))


def evaluate(experiment, generator, workdir: str) -> str:
    """Run the experiment's evaluation, write its report into `workdir` and return it as a table."""
    import jax
    import numpy as np

    from jaxdiff.evaluation import report

    train, test = experiment.data.all(), experiment.test_data.all()
    recipe = experiment.sampling
    scale = float(recipe.guidance.scale)
    settings = {
        "sampler": repr(recipe.sampler),
        "grid": repr(recipe.grid),
        "steps": recipe.steps,
        "data": {
            "train": experiment.data.source.fingerprint(),
            "test": experiment.test_data.source.fingerprint(),
        },
    }
    guidances = tuple(sorted({1.0, scale, *experiment.evaluation.guidances}))
    evaluation = dataclasses.replace(experiment.evaluation, guidances=guidances)
    real_train, real_test = (train["image"], train["label"]), (test["image"], test["label"])

    def generate(labels, seed, guidance):
        return generator(label=labels, seed=seed, guidance=None if guidance == scale else guidance)

    samples = evaluation.sample(generate, real_train)
    result = evaluation.score(
        samples,
        real_train,
        real_test,
        noise_losses={
            "log_snr": np.asarray(LOG_SNRS),
            "train": held_out_errors(experiment, generator.params, train),
            "test": held_out_errors(experiment, generator.params, test),
        },
        settings=settings,
        likelihood=held_out_bits(experiment, generator.params, test),
    )
    if jax.process_index() == 0:
        report.write(result, evaluation.gallery(samples, real_train), workdir)
    return report.table(result)


def held_out_errors(experiment, params, examples) -> list[float]:
    """Mean squared error of the conditional model's output on `examples`, at each of `LOG_SNRS`."""
    import jax
    import jax.numpy as jnp

    from jaxdiff.data import images

    task = experiment.task
    x_0 = jnp.asarray(images.to_float(examples["image"]))
    given = {name: examples[name] for name in task.denoiser.conditioner.parts if name in examples}
    fields = jax.tree.map(jnp.asarray, given)

    @jax.jit
    def error(params, log_snr):
        times = jnp.full(x_0.shape[0], task.denoiser.process_of(params).time(log_snr))
        return jnp.mean(task.error_at(params, x_0, fields, times, jax.random.key(0)))

    return [float(error(params, jnp.float32(log_snr))) for log_snr in LOG_SNRS]


def held_out_bits(experiment, params, examples) -> dict | None:
    """Bits per dimension that the conditional model needs for `examples`, where the evaluation asks for them."""
    likelihood = experiment.evaluation.likelihood
    if likelihood is None:
        return None
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxdiff.evaluation.likelihood import measure

    denoiser = experiment.task.denoiser

    @jax.jit
    def bits(params, images, fields, index):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(likelihood.seed), index)
        drop = denoiser.conditioner.none_dropped(len(images))
        fields = denoiser.conditioner.draw(fields, keys, train=False)
        encoded = denoiser.apply({"params": params}, fields, drop, method="encode")

        def denoise(x, t):
            times = jnp.broadcast_to(t, x.shape[:1])
            return denoiser.apply({"params": params}, x, times, encoded, method="predict_encoded")

        return likelihood(denoise, denoiser.process_of(params), images, keys)

    def bits_of(index):
        given = {name: examples[name] for name in denoiser.conditioner.parts if name in examples}
        fields = jax.tree.map(lambda values: jnp.asarray(values[index]), given)
        return np.asarray(bits(params, jnp.asarray(examples["image"][index]), fields, jnp.asarray(index)))

    return measure(likelihood, bits_of, len(examples["image"]))


if __name__ == "__main__":
    command.run(main)
