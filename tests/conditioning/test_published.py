"""Vectors of EDM's code for noise level, class and augmentation labels."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm_conditioning.npz")
MODELS = {
    "song": Conditioner(  # DDPM++: everything comes before the mapping
        NoiseLevel(128, frequencies=16, endpoint=True, sine_first=True),
        {
            "label": ClassLabel(10, 32, null="zero", bias=True, before_mapping=True, scale=math.sqrt(10)),
            "augment": Continuous(9, 32, default=0.0, before_mapping=True),
        },
    ),
    "ncsnpp": Conditioner(
        NoiseLevel(128, frequencies=32, random_scale=16.0, sine_first=True),
        {"augment": Continuous(9, 64, default=0.0, before_mapping=True)},
    ),
    "adm": Conditioner(  # the class comes after it
        NoiseLevel(128, frequencies=16),
        {
            "label": ClassLabel(10, 128, null="zero"),
            "augment": Continuous(9, 32, default=0.0, before_mapping=True),
        },
    ),
}


def stored(name, key):
    return jnp.asarray(STORED[f"{name}/{key}"])


def parameters(name):
    """The stored weights under our names."""

    def dense(key):
        return {"kernel": stored(name, f"{key}.weight").T, "bias": stored(name, f"{key}.bias")}

    params = {
        "noise": {"dense_0": dense("map_layer0"), "dense_1": dense("map_layer1")},
        "parts_augment": {"kernel": stored(name, "map_augment.weight").T},
    }
    if name == "ncsnpp":
        params["noise"]["frequencies"] = stored(name, "map_noise.freqs")
    if name == "adm":
        params["parts_label"] = {"table": stored(name, "map_label.weight").T}
    if name == "song":
        table = stored(name, "map_label.weight").T
        params["parts_label"] = {"table": table, "bias": stored(name, "map_label.bias")}
    return params


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", MODELS)
def test_the_vector_matches_the_published_network(name):
    """EDM applies the SiLU at the end of its mapping once; our networks apply it to their input vector."""
    model, params = MODELS[name], parameters(name)
    noise_label = stored(name, "noise_label")
    count = len(noise_label)
    arguments = (noise_label, model.example(count), model.none_dropped(count))
    own = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, own)
    names = {"label": "class_labels", "augment": "augment_labels"}
    fields = {part: stored(name, names[part]) for part in model.conditions}
    every = dict.fromkeys(model.conditions, jnp.ones(count, bool))
    for drop, key in ((model.none_dropped(count), "embedding"), (every, "embedding_null")):
        embeddings = model.apply({"params": params}, noise_label, fields, drop)
        assert embeddings.features is None
        np.testing.assert_allclose(jax.nn.silu(embeddings.vector), stored(name, key), atol=3e-6)


def test_an_index_is_the_one_hot_row():
    part = ClassLabel(10, 32, null="zero", bias=True)
    params = {"params": parameters("song")["parts_label"]}
    index, keep = jnp.array([3, 0, 9]), jnp.zeros(3, bool)
    rows = part.apply(params, jax.nn.one_hot(index, 10), keep).vector
    np.testing.assert_allclose(part.apply(params, index, keep).vector, rows, rtol=1e-6)
