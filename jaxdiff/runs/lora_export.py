"""The trained LoRA of a run as a file of its own, in the layouts of diffusers (PEFT) and of kohya."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxdiff import config as configs
from jaxdiff.codecs.latent import NAME
from jaxdiff.errors import expect
from jaxdiff.interop.lora.adapters import Adapters
from jaxdiff.interop.lora.networks import Networks, own_networks
from jaxdiff.interop.lora.trained import adapters_of
from jaxdiff.interop.stable_diffusion_export import Exported, is_stable_diffusion
from jaxdiff.interop.stable_diffusion_lora import networks_of
from jaxdiff.models.lora import by_kernel
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.workdir import read_config
from jaxdiff.tasks.pretrained import LORA, full_params
from jaxdiff.trees import some_of
from jaxdiff.typing import Params


def adapters_of_run(workdir: str) -> Adapters:
    """The averaged factors of a run's LoRA, by component and name of the weight.

    The names are those of diffusers for Stable Diffusion, and paths of our own for other models.

    Raises:
      UserError: the run trains no LoRA, or has no checkpoint.
    """
    experiment = configs.build(read_config(workdir))
    task: Any = experiment.task
    lora, fix = getattr(task, "lora", None), "leave out --only-lora, and write the whole model"
    expect(lora is not None, "--workdir", workdir, "a run that trains a LoRA", fix, "another one")
    assert lora is not None
    trained = dict(restore_params(experiment, workdir, experiment.mesh.make()))
    factors = {
        path: {name: np.asarray(array) for name, array in own.items()}
        for path, own in by_kernel(trained.pop(LORA)).items()
    }
    frozen = {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}
    base = full_params(trained, frozen, task.pretrained, None)
    kernels: Any = flatten_dict(base, sep="/")
    networks = _networks(task, base, frozen)
    _check_all_mapped(factors, networks)
    return {name: adapters_of(lora, factors, kernels, entries) for name, (_, entries) in networks.items()}


def _check_all_mapped(factors: Iterable[str], networks: Networks) -> None:
    """Raise `UserError` where a file would leave out some of the trained factors."""
    known = {entry.path for _, entries in networks.values() for entry in entries}
    left, fix = sorted(set(factors) - known), "write the whole model, without --only-lora"
    expected = "kernels of the network or of the text encoders"
    expect(not left, "config.task.lora.targets", some_of(left), expected, fix)


def _networks(task: Any, params: Params, frozen: Any) -> Networks:
    if NAME in frozen and is_stable_diffusion(task.denoiser):
        return networks_of(Exported(task.denoiser, task.codec, params, frozen[NAME]))
    return own_networks(task.denoiser, task.data_shape, flatten_dict(params, sep="/"))
