"""jaxdiff: conditional diffusion models with a U-Net, in JAX."""

__version__ = "0.2.0"
