"""Description of a feature space: what makes its figures comparable."""

from typing import Any

from jaxdiff.evaluation.protocols import FeatureExtractor


def describe(features: FeatureExtractor) -> dict[str, Any]:
    """Name, preprocessing profile and hash of the weights of a feature space, as settings of a report.

    Returns:
      ``features``, and where the extractor states them ``profile`` and ``features_hash``.
    """
    found = {"features": features.name}
    for key, attribute in (("profile", "profile"), ("features_hash", "hash")):
        value = getattr(features, attribute, None)
        if value is not None:
            found[key] = str(value)
    return found
