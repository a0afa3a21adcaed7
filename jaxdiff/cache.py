"""Encode the examples of a config once: latents and text embeddings, which training then reads from files.

python -m jaxdiff.cache --config configs/stable_diffusion.py:sd15 --out caches/sd15
python -m jaxdiff.train --config configs/stable_diffusion.py:sd15 --config.data.encoded=caches/sd15
"""

from collections.abc import Sequence

from jaxdiff.cli import app

DESCRIPTION = (
    "Encode the examples of a config once: latents and text embeddings, which training then reads from files."
)
EPILOG = """\
The same command again completes an interrupted cache. --config.PATH=VALUE changes any field of the config; train with
the same changes. Batches of config.batch_size examples are encoded at a time."""


def parser() -> app.Parser:
    flags = app.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument("--out", required=True, help="folder of the cache")
    flags.add_argument("--shards", type=int, help="number of files (default: one for each 1,024 examples)")
    precision = "of stored floats: float32 or float16 (default: %(default)s)"
    flags.add_argument("--dtype", default="float32", help=precision)
    flags.add_argument(
        "--fields",
        default=None,
        metavar="NAME,...",
        help="fields to encode, image,text for example (default: all that frozen networks read)",
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    config = app.load_config(flags.config, overrides)

    from jaxdiff import config as configs
    from jaxdiff.caching.making import Request, make
    from jaxdiff.distributed import runtime

    fields = None if flags.fields is None else tuple(flags.fields.split(","))
    request = Request(flags.out, flags.shards, flags.dtype, fields)
    experiment = configs.build(config)
    runtime.start()
    cache = make(experiment, request, _report)
    print(
        f"{flags.out}: {cache.length:,} examples with {', '.join(cache.fields)} encoded; "
        f"train with --config.data.encoded={flags.out}"
    )


def _report(done: int, count: int) -> None:
    print(f"shard {done} of {count}", flush=True)


if __name__ == "__main__":
    app.run(main)
