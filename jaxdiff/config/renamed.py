"""Renamed classes and fields: stored configs and command lines that use the old names keep working."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.config.old_structures import (
    ENCODER_FIELDS,
    convert_magnitude_unet,
    convert_text,
    convert_tokenize,
    convert_unet,
)

MODULES = {
    "jaxdiff.training.finetune": "jaxdiff.training.transfer",
    "jaxdiff.sampling.likelihood": "jaxdiff.likelihood.flow",
    "jaxdiff.sampling.variational": "jaxdiff.likelihood.variational",
    "jaxdiff.evaluation.likelihood": "jaxdiff.evaluation.metrics.bits_per_dim",
    "jaxdiff.sampling.adams": "jaxdiff.sampling.samplers.adams",
    "jaxdiff.sampling.adaptive": "jaxdiff.sampling.samplers.adaptive",
    "jaxdiff.sampling.ancestral": "jaxdiff.sampling.samplers.ancestral",
    "jaxdiff.sampling.ddim": "jaxdiff.sampling.samplers.ddim",
    "jaxdiff.sampling.dpm_solver": "jaxdiff.sampling.samplers.dpm_solver",
    "jaxdiff.sampling.dpm_solver_single": "jaxdiff.sampling.samplers.dpm_solver_single",
    "jaxdiff.sampling.exponential": "jaxdiff.sampling.samplers.exponential",
    "jaxdiff.sampling.heun": "jaxdiff.sampling.samplers.heun",
    "jaxdiff.sampling.multistep": "jaxdiff.sampling.samplers.multistep",
    "jaxdiff.sampling.pndm": "jaxdiff.sampling.samplers.pndm",
    "jaxdiff.sampling.sa_solver": "jaxdiff.sampling.samplers.sa_solver",
    "jaxdiff.sampling.unipc": "jaxdiff.sampling.samplers.unipc",
    "jaxdiff.sampling.grids": "jaxdiff.sampling.grids.continuous",
    "jaxdiff.sampling.discrete_grids": "jaxdiff.sampling.grids.discrete",
    "jaxdiff.sampling.align_your_steps": "jaxdiff.sampling.grids.align_your_steps",
    "jaxdiff.sampling.revisiting_grids": "jaxdiff.sampling.grids.restart",
    "jaxdiff.sampling.tail": "jaxdiff.sampling.grids.truncated",
    "jaxdiff.sampling.guidance": "jaxdiff.sampling.guidance.classifier_free",
    "jaxdiff.sampling.autoguidance": "jaxdiff.sampling.guidance.autoguidance",
    "jaxdiff.sampling.cads": "jaxdiff.sampling.guidance.cads",
    "jaxdiff.sampling.composition": "jaxdiff.sampling.guidance.per_condition",
    "jaxdiff.sampling.combination": "jaxdiff.sampling.guidance.rules",
    "jaxdiff.sampling.classifier": "jaxdiff.sampling.guidance.classifier",
    "jaxdiff.sampling.thresholding": "jaxdiff.sampling.modifiers.thresholding",
    "jaxdiff.sampling.consistency": "jaxdiff.sampling.modifiers.data_consistency",
    "jaxdiff.sampling.inpainting": "jaxdiff.sampling.modifiers.inpainting",
    "jaxdiff.evaluation.frechet": "jaxdiff.evaluation.metrics.frechet",
    "jaxdiff.evaluation.neighbours": "jaxdiff.evaluation.metrics.precision_recall",
    "jaxdiff.evaluation.diversity": "jaxdiff.evaluation.metrics.memorization",
    "jaxdiff.evaluation.paired": "jaxdiff.evaluation.metrics.paired",
    "jaxdiff.evaluation.spectrum": "jaxdiff.evaluation.metrics.spectrum",
    "jaxdiff.evaluation.patches": "jaxdiff.evaluation.features.patches",
    "jaxdiff.evaluation.features": "jaxdiff.evaluation.features.pixels",
    "jaxdiff.evaluation.evaluator": "jaxdiff.evaluation.reports.class_conditional",
    "jaxdiff.evaluation.scene_evaluation": "jaxdiff.evaluation.scenes.report",
    "jaxdiff.evaluation.scene_judge": "jaxdiff.evaluation.scenes.classifier",
    "jaxdiff.evaluation.translation": "jaxdiff.evaluation.reports.image_to_image",
    "jaxdiff.evaluation.super_resolution": "jaxdiff.evaluation.reports.super_resolution",
    "jaxdiff.evaluation.restoration": "jaxdiff.evaluation.reports.paired",
    "jaxdiff.evaluation.judge": "jaxdiff.evaluation.classifiers.svm",
    "jaxdiff.evaluation.drawing": "jaxdiff.evaluation.plots.drawing",
    "jaxdiff.evaluation.picture": "jaxdiff.evaluation.plots.panel",
    "jaxdiff.evaluation.figures": "jaxdiff.evaluation.plots.tables",
    "jaxdiff.evaluation.report": "jaxdiff.evaluation.reports.files",
    "jaxdiff.evaluation.subject": "jaxdiff.evaluation.protocols",
}
"""Old module -> new module."""

CLASSES = {
    "jaxdiff.models.transformer:TransformerLevel": "TransformerMiddle",
    "jaxdiff.evaluation.classifiers.svm:SvcJudge": "SvmClassifier",
    "jaxdiff.evaluation.scenes.classifier:SceneJudge": "SceneClassifier",
    "jaxdiff.sampling.grids.truncated:Tail": "Truncated",
    "jaxdiff.sampling.modifiers.data_consistency:MatchLowRes": "DataConsistency",
    "jaxdiff.tasks.objectives:Uncertain": "UncertaintyWeighted",
    "jaxdiff.training.transfer:StartFrom": "InitFrom",
}
"""``"new.module:OldClass"`` -> the present name of the class."""

FIELDS = {
    "jaxdiff.data.folder:ImageFolder": {"test_share": "test_fraction"},
    "jaxdiff.data.masks:Uncrop": {"share": "fraction"},
    "jaxdiff.models.unet:UNet": {
        "groups": "block.groups",
        "min_group_size": "block.min_group_size",
        "eps": "block.eps",
        "modulation": "block.modulation",
        "skip_scale": "block.skip_scale",
        "resample_taps": "block.resample_taps",
        "project_resampled": "block.project_resampled",
    },
    "jaxdiff.models.unet:Level": {
        "self_attention": "attention.self_attention",
        "cross_attention": "attention.cross_attention",
    },
    "jaxdiff.conditioning.conditioner:Conditioner": {"parts": "conditions"},
    "jaxdiff.conditioning.text:Text": {
        "length": "tokenizer.length",
        **{name: f"encoder.{name}" for name in ENCODER_FIELDS},
    },
    "jaxdiff.data.text:Tokenize": {"length": "tokenizer.length"},
    "jaxdiff.evaluation.reports.class_conditional:ImageEvaluation": {"judge": "classifier"},
    "jaxdiff.evaluation.scenes.report:SceneEvaluation": {"judge": "classifier"},
    "jaxdiff.experiment:Experiment": {"start_from": "init_from"},
    "jaxdiff.likelihood.flow:Hutchinson": {"law": "distribution"},
    "jaxdiff.sampling.grids.truncated:Truncated": {"share": "fraction"},
    "jaxdiff.tasks.denoising:DenoisingTask": {"times": "time_sampler"},
}
"""Present ``"module:Class"`` -> {old field: new field, or its path if it moved into a block}."""

CONVERTERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "jaxdiff.models.unet:UNet": convert_unet,
    "jaxdiff.models.magnitude_unet:MagnitudeUNet": convert_magnitude_unet,
    "jaxdiff.conditioning.text:Text": convert_text,
    "jaxdiff.data.text:Tokenize": convert_tokenize,
}
"""Present ``"module:Class"`` -> a function from a stored block of any version to its present structure."""


def current(target: str) -> str:
    """The present name of a target, old or present."""
    module, colon, name = target.partition(":")
    module = MODULES.get(module, module)
    return f"{module}{colon}{CLASSES.get(f'{module}:{name}', name)}"


def current_field(target: str, field: str) -> str:
    """The present name of a field of the class ``"module:Class"``."""
    return FIELDS.get(target, {}).get(field, field)


def upgrade(block: Any) -> Any:
    """A config of plain dictionaries and lists in its present form: old names and structures replaced."""
    if isinstance(block, Mapping):
        target = block.get("target")
        if not isinstance(target, str):
            return {name: upgrade(value) for name, value in block.items()}
        new = current(target)
        block = CONVERTERS.get(new, dict)(block)
        return {current_field(new, name): upgrade(value) for name, value in block.items()} | {"target": new}
    if isinstance(block, list | tuple):
        return [upgrade(item) for item in block]
    return block
