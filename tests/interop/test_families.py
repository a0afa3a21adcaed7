"""The family of a file is recognised by its names, from the file to the parameters."""

import jax
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop import edm, families
from jaxdiff.interop.mapping import to_params
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.process.prediction import Edm
from tests.interop import test_edm2
from tests.interop import test_published_networks as networks

CASES = {
    name: (network, noise, parts, entries) for name, network, noise, parts, entries in networks.all_networks()
}


def model(name):
    if name == "edm2":
        return test_edm2.DENOISER, test_edm2.TENSORS, test_edm2.abstract(test_edm2.DENOISER)
    network, noise, parts, _ = CASES[name]
    denoiser = networks.denoiser(network, noise, parts, networks.VE, Edm())
    return denoiser, networks.golden(name)[0], networks.shapes(denoiser)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", [*CASES, "edm2"])
def test_every_stored_file_finds_its_mapping(name, tmp_path):
    denoiser, tensors, abstract = model(name)
    file = tmp_path / "weights"
    write_safetensors(file, tensors)
    found = read_tensors(file).tensors
    order = "new" if name == "gd_unet_adm_new" else None
    params = to_params(families.entries(found, denoiser, 16, order), found, abstract, edm.BUFFERS)
    expected = (
        test_edm2.load(tensors)
        if name == "edm2"
        else to_params(CASES[name][3], tensors, abstract, edm.BUFFERS)
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_order_of_attention_matches_the_published_models():
    denoiser, tensors, _ = model("gd_unet_adm_new")

    def layout(size, order=None):
        entries = families.entries(tensors, denoiser, size, order)
        (entry,) = (
            entry
            for entry in entries
            if entry.path.endswith("middle_block_0/self_attention/query_key_value/bias")
        )
        return entry.layout.load([np.arange(3 * 64)], (3, 4, 16))

    np.testing.assert_array_equal(layout(64), layout(16, "new"))
    np.testing.assert_array_equal(layout(256), layout(16, "legacy"))
    assert not np.array_equal(layout(64), layout(256))


def test_other_networks_and_names_are_refused():
    denoiser, tensors, _ = model("edm_adm")
    with pytest.raises(UserError, match="named as in EDM2"):
        families.entries(test_edm2.TENSORS, denoiser, 16)
    with pytest.raises(UserError, match=r"named as in EDM, .*with a UNet"):
        families.entries(tensors, test_edm2.DENOISER, 16)
    with pytest.raises(UserError, match="expected tensors named as in guided-diffusion"):
        families.entries(["transformer.h.0.weight"], denoiser, 16)
    with pytest.raises(UserError, match=r"--attention-order=.old"):
        families.entries(networks.golden("gd_unet_ddpm")[0], denoiser, 16, "old")
