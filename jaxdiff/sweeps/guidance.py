"""The guidance of a setting: the run's own, with another scale, rule or interval."""

import ast
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from jaxdiff import config as configs
from jaxdiff.config.suggestions import suggest
from jaxdiff.errors import UserError, expect
from jaxdiff.sampling.guidance import rules
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.names import plain
from jaxdiff.sampling.protocols import Guidance
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sweeps.settings import OWN, Setting

Change = Callable[[Any], Guidance]


def recipe_of(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe of a setting, from one that already has its sampler and its steps.

    A scale at which guidance is off has no interval, so that settings that mean the same are equal.

    Raises:
      UserError: the guidance of the recipe has no rule, interval or scale of this kind.
    """
    guidance = _with_rule(recipe.guidance, setting)
    if setting.interval != OWN:
        guidance = _inside(guidance, _interval(setting.interval))
    if setting.guidance is not None:
        with _naming_the_scale(setting.guidance):
            guidance = guidance.with_scale(setting.guidance)
    return dataclasses.replace(recipe, guidance=_inside(guidance, _plain_if_off))


def resolved(setting: Setting, recipe: Recipe) -> Setting:
    """A setting with the scale, steps and sampler of its recipe in place of the run's, under one name each."""
    sampler = type(recipe.sampler).__name__
    named = setting.sampler == OWN or plain(setting.sampler) == plain(sampler)
    scale, name = float(recipe.guidance.scale), sampler if named else setting.sampler
    negative = OWN if scale == 1 else setting.negative  # there nothing is shown but the condition
    return dataclasses.replace(setting, guidance=scale, steps=recipe.steps, sampler=name, negative=negative)


def _with_rule(guidance: Any, setting: Setting) -> Guidance:
    """The guidance with the rule that a setting names, and with its scale, which another rule may refuse.

    Besides the classes of `jaxdiff.sampling.guidance.rules` there are ``cads``, which adds noise to the conditions, and
    ``autoguidance``, which guides away from a weaker model instead of the null.
    """
    text = setting.rule
    if text == OWN:
        return guidance
    known = {plain(cls.__name__): cls for cls in (*_rules(), Autoguidance, Cads)}
    name = plain(text.partition("(")[0])
    listed = ", ".join([OWN, *(cls.__name__ for cls in known.values())])
    expect(name in known, "--rule", text, f"one of {listed}", suggest(name, known), name)
    cls, arguments = known[name], _arguments(text)
    if cls is Cads:
        return _made(text, cls, arguments, guidance=configs.describe(guidance))
    if cls is Autoguidance:
        return _inside(guidance, lambda inner: _autoguidance(text, inner, arguments))
    scale = {} if setting.guidance is None else {"scale": setting.guidance}
    fields = {"rule": _made(text, cls, arguments), **scale}
    with _naming_the_scale(guidance.scale if setting.guidance is None else setting.guidance):
        return _inside(guidance, lambda inner: _replaced(inner, "--rule", text, **fields))


def _rules() -> list[type]:
    classes = [cls for _, cls in inspect.getmembers(rules, inspect.isclass)]
    own = [cls for cls in classes if cls.__module__ == rules.__name__ and cls is not rules.Rule]
    return [cls for cls in own if issubclass(cls, rules.Rule)]


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of ``Name(field=value)``."""
    with contextlib.suppress(SyntaxError, ValueError):
        call = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    raise UserError(
        f"--rule={text}: expected a name with arguments, got {text!r}. Fix: write Name(field=value)"
    )


def _made(text: str, cls: type, arguments: dict[str, Any], **further: Any) -> Any:
    """The object of a rule's class, with the command line's errors."""
    try:
        return configs.build(configs.spec(cls, **arguments, **further))
    except UserError as error:
        raise UserError(f"--rule={text}: {error.message.removeprefix('config.')}") from None


def _autoguidance(text: str, inner: Any, arguments: dict[str, Any]) -> Guidance:
    fix = "leave it out"
    plain_form = isinstance(inner, ClassifierFree | Autoguidance)
    expect(plain_form, "--rule", text, "a run with ClassifierFree", fix, type(inner).__name__)
    own = {name: configs.describe(getattr(inner, name)) for name in ("scale", "interval")}
    return _made(text, Autoguidance, own | arguments)


def _interval(text: str) -> Change:
    interval = None if text == "none" else Interval(*map(float, text.split(":")))
    return lambda inner: _replaced(inner, "--interval", text, interval=interval)


def _replaced(inner: Any, flag: str, text: str, **fields: Any) -> Guidance:
    known = getattr(inner, "__dataclass_fields__", {})
    name = next(iter(fields))
    fix = "use ClassifierFree, or leave it out"
    expect(name in known, flag, text, f"a run whose guidance has a field {name}", fix, type(inner).__name__)
    return dataclasses.replace(inner, **fields)


def _plain_if_off(inner: Any) -> Guidance:
    """A guidance without an interval where its scale calls the conditional model alone."""
    off = isinstance(inner, ClassifierFree | Autoguidance) and inner.rule.alone(inner.scale) == 0
    return dataclasses.replace(inner, interval=None) if off else inner


def _inside(guidance: Any, change: Change) -> Guidance:
    """The guidance with a change of the innermost one, which others such as `Cads` contain."""
    if hasattr(guidance, "guidance"):
        return dataclasses.replace(guidance, guidance=_inside(guidance.guidance, change))
    return change(guidance)


@contextlib.contextmanager
def _naming_the_scale(scale: float) -> Iterator[None]:
    """Let errors about a scale name its flag."""
    try:
        yield
    except UserError as error:
        if not error.message.startswith("scale"):
            raise
        raise UserError(f"--guidance={scale:g}: {error.message.partition(': ')[2]}") from None
