"""From a TOML file and `key=value` overrides to a checked recipe: every fault is told at once, each with its fix."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlsys.errors import RecipeError
from rlsys.recipe.recipe import SHARED_SECTIONS, STAGE_KINDS, Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, merges, overrides and checks a recipe; relative paths in it are relative to the working directory.

    A recipe with `base = "other.toml"`, a path relative to its own folder, says only where it differs: its tables are
    merged into those of the other, stages by name.

    Args:
        path: a TOML file.
        overrides: `key=value`, the value itself TOML (`learner.lr=3e-6`, `name="mine"`; a bare word is a string).
            The first part of the key is a stage's name, a section shared by all stages, or a top-level key.

    Raises:
        RecipeError: naming every fault found, with the value received and the fix.
    """
    return build_recipe(_read(Path(path)), overrides, name=str(path))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a file, merged into those of its base, if it names one."""
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise RecipeError(
            f"no recipe at {path}", fix="give the path of a .toml file, such as configs/quickstart.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", fix="mend the line it names") from None
    if "base" not in tree:
        return tree
    base = path.parent / str(tree.pop("base"))
    if base.resolve() in above:
        raise RecipeError("a recipe is its own base", value=str(base), fix=f"remove base from {path}")
    return _on_base(_read(base, (*above, path.resolve())), tree)


def _on_base(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    stages = {stage.get("name", stage.get("kind")): stage for stage in base.get("stage", [])}
    for stage in tree.pop("stage", []):
        label = stage.get("name", stage.get("kind"))
        stages[label] = _merge(stages.get(label, {}), stage)
    return _merge(base, tree) | {"stage": list(stages.values())}


def build_recipe(tree: dict[str, Any], overrides: Sequence[str] = (), *, name: str = "recipe") -> Recipe:
    """As `load_recipe`, from a parsed table."""
    problems: list[str] = []
    for override in overrides:
        try:
            _apply_override(tree, override)
        except RecipeError as error:
            problems.append(str(error))
    tree = _share_sections(tree)
    try:
        recipe = Recipe.model_validate(_frozen(tree))
    except ValidationError as error:
        problems += [_explain(fault, tree) for fault in error.errors(include_url=False)]
    else:
        problems += recipe.faults()
        if not problems:
            return recipe
    listing = "\n".join(f"  - {problem}" for problem in problems)
    raise RecipeError(f"{name} has {len(problems)} fault(s):\n{listing}", problems=tuple(problems))


def _frozen(value: Any) -> Any:
    """Arrays as tuples all the way down, since sections are frozen."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError("an override is key=value", value=override, fix="write it as learner.lr=3e-6")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    stages = tree.get("stage", [])
    named = [stage for stage in stages if stage.get("name", stage.get("kind")) == parts[0]]
    if named:
        for stage in named:
            _set(stage, parts[1:], value, override)
        return
    known = [*Recipe.model_fields, *SHARED_SECTIONS, *(stage.get("name", stage.get("kind")) for stage in stages)]
    if parts[0] not in known:
        raise RecipeError(f"unknown key {key}", value=text, fix=_suggest(parts[0], known))
    _set(tree, parts, value, override)
    if parts[0] in SHARED_SECTIONS:
        for stage in stages:  # an override beats what the stage itself says
            if parts[0] in stage:
                _set(stage, parts, value, override)


def _set(table: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{part} is a value, not a table", value=override, fix="shorten the key")
    if not parts:
        raise RecipeError("a stage cannot be replaced by a value", value=override, fix="name one of its keys")
    table[parts[-1]] = value


def _share_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the shared sections under every stage whose kind has them; what the stage says wins."""
    shared = {key: tree[key] for key in SHARED_SECTIONS if key in tree}
    rest = {key: value for key, value in tree.items() if key not in SHARED_SECTIONS}
    stages = []
    for stage in rest.get("stage", []):
        kind = STAGE_KINDS.get(stage.get("kind", "")) if isinstance(stage, dict) else None
        if kind is not None:
            own = {key: value for key, value in shared.items() if key in kind.model_fields}
            stage = _merge(own, stage)
        stages.append(stage)
    return {**rest, "stage": stages} if "stage" in rest else rest


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(fault: Any, tree: Mapping[str, Any]) -> str:
    """One pydantic fault as: where, what is wrong, the value, the fix."""
    location, model = _walk(fault["loc"], tree)
    if fault["type"] == "extra_forbidden":
        known = list(model.model_fields) if model else []
        return f"{location}: unknown key; got {fault['input']!r}; {_suggest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"{location}: missing; add it"
    if fault["type"] == "union_tag_invalid":
        received = fault["ctx"]["tag"]
        return f"{location}: unknown kind; got '{received}'; {_suggest(str(received), list(STAGE_KINDS))}"
    if fault["type"] == "union_tag_not_found":
        return f"{location}: a stage needs a kind; set kind to one of {', '.join(STAGE_KINDS)}"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], Mapping) else f"; got {fault['input']!r}"
    return f"{location}: {message}{value}"


def _walk(loc: tuple[int | str, ...], tree: Mapping[str, Any]) -> tuple[str, type[BaseModel] | None]:
    """The dotted place of a fault as the user wrote it, and the section that should hold its last key."""
    parts = list(loc)
    model: type[BaseModel] | None = Recipe
    shown: list[str] = []
    if len(parts) >= 2 and parts[0] == "stage" and isinstance(parts[1], int):
        stage = tree["stage"][parts[1]]
        table = stage if isinstance(stage, Mapping) else {}
        kind = str(table.get("kind", ""))
        shown.append(str(table.get("name", kind) or f"stage[{parts[1]}]"))
        model = STAGE_KINDS.get(kind)
        parts = parts[3:] if len(parts) > 2 and parts[2] == kind else parts[2:]
    for index, part in enumerate(parts):
        shown.append(str(part))
        if index < len(parts) - 1:
            model = _child(model, str(part))
    return ".".join(shown), model


def _child(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    if model is None or key not in model.model_fields:
        return None
    annotation = model.model_fields[key].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _suggest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, [str(name) for name in known], n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(set(map(str, known))))}"
