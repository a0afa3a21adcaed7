"""A run written as published files, from the command line."""

import json
from typing import Any

from jaxdiff.cli import output
from jaxdiff.errors import expect

DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "config.json")
"""The files of a model in the layout of diffusers."""


def export(workdir: str, target: str) -> str:
    """Write a run in the layout of diffusers, or a run of latents as a single file; returns a summary for the user."""
    from jaxdiff.runs.stages import is_staged
    from jaxdiff.runs.workdir import read_config

    config = read_config(workdir)
    staged = is_staged(config)
    if not staged and not config.task.get("codec", {}).get("target", "").endswith(":Latent"):
        return diffusers_model(workdir, target)
    single = target.endswith(".safetensors") and not staged
    place = output.file("--to", target) if single else output.folder("--to", target)
    place.check()

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.runs import published_export, published_unclip_export

    folder = published_unclip_export.folder if staged else published_export.folder
    made = (published_export.single_file if single else folder)(workdir)
    place.check_space(made.size)
    place.write(made.write)
    return f"wrote {made.count} tensors of {workdir} to {place.path}, {made.kind}"


def lora(workdir: str, target: str, layout: Any) -> str:
    """Write the LoRA that a run has trained, "diffusers" or "kohya" by `layout`; returns a one-line summary."""
    from jaxdiff.runs.workdir import read_config

    read_config(workdir)
    file, fix = output.file("--to", target), "give --to FILE.safetensors"
    expect(target.endswith(".safetensors"), "--to", target, "a file of safetensors for a LoRA", fix)
    file.check()

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.interop.lora.writing import write_lora
    from jaxdiff.runs.lora_export import adapters_of_run

    adapters = adapters_of_run(workdir)
    file.write(lambda draft: write_lora(draft, adapters, layout))
    count = sum(map(len, adapters.values()))
    return f"wrote the LoRA of {count} weights of {workdir} to {file.path}"


def diffusers_model(workdir: str, folder: str) -> str:
    """Write the averaged weights of a run as a diffusers `UNet2DModel`; returns a one-line summary.

    The folder may exist, but not one of these two files in it.
    """
    from jaxdiff.runs import classes
    from jaxdiff.runs.workdir import read_config

    read_config(workdir)
    table = classes.read(workdir)
    names = DIFFUSERS_FILES if table is None else (*DIFFUSERS_FILES, classes.FILE)
    files = [output.file("--to", f"{folder}/{name}") for name in names]
    for file in files:
        file.check()

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.generation.generator import Generator
    from jaxdiff.interop import diffusers
    from jaxdiff.interop.mapping import to_tensors
    from jaxdiff.interop.safetensors_files import write_safetensors

    generator = Generator.load(workdir)
    config = diffusers.model_config(generator.denoiser, generator.image_shape[0])
    tensors = to_tensors(diffusers.entries(diffusers.network_of(generator.denoiser)), generator.params)
    weights, settings, *names_of_classes = files
    weights.check_space(sum(array.nbytes for array in tensors.values()))
    weights.write(lambda draft: write_safetensors(draft, tensors, {"format": "pt"}))
    settings.write(lambda draft: draft.write_text(json.dumps(config, indent=2)))
    for file in names_of_classes:
        file.write(lambda draft: draft.write_text(classes.to_json(table or ())))
    return f"wrote {len(tensors)} tensors of {workdir} to {folder}"
