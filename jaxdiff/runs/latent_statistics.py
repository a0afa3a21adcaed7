"""Statistics of latents, measured by the evaluation of an autoencoder's run."""

import dataclasses
from typing import ClassVar

import numpy as np
from etils import epath

from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Params

REPORT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class MeasuredLatents:
    """The mean and the standard deviation of each channel, from the last evaluation of a run.

    The run is one of `jaxdiff.tasks.autoencoding.AutoencodingTask`, evaluated with the metric `LatentStatistics`.

    Attributes:
      workdir: the run's folder.
    """

    places: ClassVar[tuple[str, ...]] = ("workdir",)

    workdir: str

    def read(self) -> Params:
        """The tree of ``mean`` and ``std``, [channels] each.

        Raises:
          UserError: the run was not evaluated, or without this metric; or a channel is constant.
        """
        file, fix = (
            epath.Path(self.workdir).expanduser() / REPORT,
            "evaluate the run: python -m jaxdiff.evaluate",
        )
        expect(file.exists(), "workdir", self.workdir, f"a run with {REPORT}", fix, "none")
        where = f"{self.workdir}/{REPORT}"
        try:
            found = read_json(read_text(file, where), where, fix)["test"]["latents"]
            tree = {name: np.asarray(found[name], np.float32) for name in ("mean", "std")}
        except (KeyError, TypeError, ValueError):
            raise UserError(f"workdir={self.workdir}: expected statistics of latents in {REPORT}, got none. "
                            "Fix: evaluate the run with the metric LatentStatistics") from None  # fmt: skip
        varied = bool(np.all(tree["std"] > 0))
        expect(
            varied,
            "workdir",
            self.workdir,
            "latents that vary in every channel",
            "train longer",
            "a constant",
        )
        return tree

    def describe(self) -> str:
        return f"{self.workdir} ({REPORT})"
