"""Renamed classes and fields: stored configs and command lines that use the old names keep working."""

from collections.abc import Mapping
from typing import Any

MODULES = {
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
    "jaxdiff.evaluation.classifiers.svm:SvcJudge": "SvmClassifier",
    "jaxdiff.evaluation.scenes.classifier:SceneJudge": "SceneClassifier",
    "jaxdiff.sampling.grids.truncated:Tail": "Truncated",
    "jaxdiff.sampling.modifiers.data_consistency:MatchLowRes": "DataConsistency",
    "jaxdiff.tasks.objectives:Uncertain": "UncertaintyWeighted",
    "jaxdiff.training.finetune:StartFrom": "InitFrom",
}
"""``"new.module:OldClass"`` -> the class's name there."""

FIELDS = {
    "jaxdiff.conditioning.conditioner:Conditioner": {"parts": "conditions"},
    "jaxdiff.experiment:Experiment": {"start_from": "init_from"},
    "jaxdiff.tasks.denoising:DenoisingTask": {"times": "time_sampler"},
}
"""``"module:Class"`` of today -> {old field: new field}."""


BYTE_TOKENIZER = "jaxdiff.data.text:ByteTokenizer"
ENCODER_FIELDS = ("width", "layers", "window", "words", "phrase", "head_dim", "expansion", "dtype")


def _text(block: dict[str, Any]) -> dict[str, Any]:
    """``Text(width, length, ...)`` -> ``Text(tokenizer, encoder, ...)``."""
    if "tokenizer" in block or "length" not in block:
        return block
    encoder = {name: block.pop(name) for name in ENCODER_FIELDS if name in block}
    encoder["target"] = "jaxdiff.models.text_encoder:ByteTransformer"
    return {**_tokenizer(block), "encoder": encoder}


def _tokenizer(block: dict[str, Any]) -> dict[str, Any]:
    """A field `length` -> a block `tokenizer`."""
    if "tokenizer" in block or "length" not in block:
        return block
    return {"tokenizer": {"target": BYTE_TOKENIZER, "length": block.pop("length")}, **block}


STRUCTURES = {"jaxdiff.conditioning.text:Text": _text, "jaxdiff.data.text:Tokenize": _tokenizer}
"""``"module:Class"`` of today -> converter of a block whose fields were regrouped."""


def current(target: str) -> str:
    """The present name of a target, which may be an old one."""
    module, colon, name = target.partition(":")
    module = MODULES.get(module, module)
    return f"{module}{colon}{CLASSES.get(f'{module}:{name}', name)}"


def current_field(target: str, field: str) -> str:
    """The present name of a field of the class ``"module:Class"``."""
    return FIELDS.get(target, {}).get(field, field)


def upgrade(block: Any) -> Any:
    """A config of plain dictionaries and lists with every old name replaced by the present one."""
    if isinstance(block, Mapping):
        target = block.get("target")
        if not isinstance(target, str):
            return {name: upgrade(value) for name, value in block.items()}
        new = current(target)
        fields = {current_field(new, name): upgrade(value) for name, value in block.items()} | {"target": new}
        return STRUCTURES[new](fields) if new in STRUCTURES else fields
    if isinstance(block, list | tuple):
        return [upgrade(item) for item in block]
    return block
