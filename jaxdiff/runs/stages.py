"""Staged runs: a folder of several runs that are sampled in sequence, such as unCLIP's prior and decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from etils import epath
from flax.core import FrozenDict

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET
from jaxdiff.errors import UserError, expect
from jaxdiff.models.clip_vision import ClipVisionEncoder
from jaxdiff.runs.workdir import CONFIG_FILE, read_config
from jaxdiff.typing import Weights


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run that is one stage of several.

    Attributes:
      name: of the stage, on command lines.
      workdir: the run's folder.
      gives: the condition of later stages that the samples of this one fill; None for the last stage.
      last: the folder of another run that takes the last step, as Karlo's second super-resolution network; None for
        the same run.
    """

    places: ClassVar[tuple[str, ...]] = ("workdir", "last")

    name: str
    workdir: str
    gives: str | None = None
    last: str | None = None


@dataclasses.dataclass(frozen=True)
class PhotoEncoder:
    """CLIP's image encoder, which gives the embedding of a photograph in place of a prior's.

    Attributes:
      encoder: the network.
      weights: origin of its parameters.
    """

    encoder: ClipVisionEncoder
    weights: Weights


@dataclasses.dataclass(frozen=True)
class StagedRun:
    """What the `config.json` of a staged run describes.

    Attributes:
      stages: in the order of sampling.
      encoders: by the condition that they fill from a photograph.
      noises: names under which the noise of an augmented condition is given, and that condition.
    """

    stages: tuple[Stage, ...]
    encoders: Mapping[str, PhotoEncoder] = FrozenDict()
    noises: Mapping[str, str] = FrozenDict()

    def __post_init__(self):
        names, fix = [stage.name for stage in self.stages], "give each stage another name"
        expect(len(names) > 0, "stages", names, "at least one stage", "add a Stage")
        expect(len(set(names)) == len(names), "stages", names, "different names", fix)
        for stage in self.stages[:-1]:
            expect(stage.gives is not None, f"stages.{stage.name}.gives", None,
                   "the condition of a later stage, since this is not the last", "name it")  # fmt: skip
        last = self.stages[-1]
        expect(
            last.gives is None,
            f"stages.{last.name}.gives",
            last.gives,
            "None for the last stage",
            "leave it out",
        )


def is_staged(config: Any) -> bool:
    """Whether a stored config is that of a staged run."""
    return config.get(TARGET) == f"{StagedRun.__module__}:{StagedRun.__qualname__}"


def read_staged(workdir: str) -> StagedRun:
    """The staged run in a folder.

    Raises:
      UserError: there is no run in it, or an ordinary one.
    """
    config, fix = read_config(workdir), "use Generator.load, or leave the stages out"
    expect(is_staged(config), "--workdir", workdir, "a run of several stages", fix, "an ordinary run")
    found: Any = configs.build(config)
    return found


def write_staged(staged: StagedRun, workdir: str) -> None:
    """Make a folder the staged run of runs that exist, so that commands sample them in sequence.

    Raises:
      UserError: the folder holds another run, or a stage has none.
    """
    folder, fix = epath.Path(workdir).expanduser(), "train the stage first, or name another folder"
    for stage in staged.stages:
        there = (epath.Path(stage.workdir).expanduser() / CONFIG_FILE).exists()
        expect(there, f"stages.{stage.name}.workdir", stage.workdir, "the folder of a run", fix, "none")
    file, text = folder / CONFIG_FILE, configs.to_json(configs.describe(staged))
    other = file.exists() and file.read_text() != text
    expect(not other, "workdir", workdir, "a folder without another run", "use another folder", "a run")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def read_model_config(workdir: str) -> Any:
    """The stored config of a run with a single model.

    Raises:
      UserError: as `read_config`, or the run has several stages.
    """
    config = read_config(workdir)
    if is_staged(config):
        names = ", ".join(stage["name"] for stage in config.stages)
        raise UserError(
            f"--workdir={workdir}: expected a run of one model, got one of several stages ({names}). "
            f"Fix: give the folder of a stage, such as {config.stages[0]['workdir']}"
        )
    return config
