"""From a TOML file and `key=value` overrides to a checked recipe: every fault is told at once, each with its fix."""

import copy
import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from rlsys.errors import RecipeError
from rlsys.recipe.faults import input_faults, model_faults, recipe_faults
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.recipe import SHARED_SECTIONS, STAGE_KINDS, Recipe
from rlsys.recipe.stages import AnyStage

ON_TOP_OF = {"value": "learner"}
"""A section of a stage to another one of it that it only changes: what it leaves out is as it is there."""
INSTEAD_OF = {
    "path": ("config", "init_std", "tokenizer"),
    "config": ("path",),
    "warmup_steps": ("warmup_fraction",),
    "warmup_fraction": ("warmup_steps",),
    "endpoint": ("local_model",),
    "local_model": ("endpoint",),
}
"""A key to those that it replaces where they come from below, since TOML has no word for taking a key away."""
HOME = "~/"
BOUNDS = {
    "greater_than": ("gt", 1),
    "greater_than_equal": ("ge", 0),
    "less_than": ("lt", -1),
    "less_than_equal": ("le", 0),
}
"""Pydantic's name of a fault to its name of the bound, and the step from there to the nearest count that is allowed."""


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
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(
            f"no recipe at {path}", fix="give the path of a .toml file, such as configs/quickstart.toml"
        ) from None
    except OSError as error:  # a directory, no permission
        raise RecipeError(
            f"the recipe {path} cannot be read", value=error.strerror, fix="give the path of a readable .toml file"
        ) from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, no path, tables without end
        raise RecipeError(f"{str(path)!r} is not TOML: {error}", fix="mend the line it names") from None
    _require_stage_tables(tree, str(path))
    if "base" not in tree:
        return tree
    base = path.parent / str(tree.pop("base"))
    if base.resolve() in above:
        raise RecipeError("a recipe is its own base", value=str(base), fix=f"remove base from {path}")
    return _on_base(_read(base, (*above, path.resolve())), tree)


def _require_stage_tables(tree: Mapping[str, Any], name: str) -> None:
    stages = tree.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        wrong = "[stage] is one table" if isinstance(stages, dict) else f"stage is {stages!r}"
        raise RecipeError(f"{name}: {wrong}, and stages are a list of tables", fix="begin each one with [[stage]]")


def _label(stage: Mapping[str, Any]) -> str:
    """What the user calls a stage that is not checked yet."""
    return str(stage.get("name") or stage.get("kind"))


def _by_label(stages: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        label = _label(stage)
        if label in found:  # either would be lost
            raise RecipeError(f"{label}: two stages have this name", fix="give one of them another name")
        found[label] = stage
    return found


def _on_base(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    stages = _by_label(base.get("stage", []))
    for label, stage in _by_label(tree.pop("stage", [])).items():
        stages[label] = _merge(stages.get(label, {}), stage)
    return _merge(base, tree) | {"stage": list(stages.values())}


def build_recipe(tree: dict[str, Any], overrides: Sequence[str] = (), *, name: str = "recipe") -> Recipe:
    """As `load_recipe`, from a parsed table."""
    _require_stage_tables(tree, name)
    problems: list[str] = []
    for override in overrides:
        try:
            _apply_override(tree, override)
        except RecipeError as error:
            problems.append(str(error))
    recipe, found = _check(_plain(_share_sections(tree)))
    problems += found
    if recipe is not None and not problems:
        return recipe
    listing = "\n".join(f"  - {problem}" for problem in problems)
    raise RecipeError(f"{name} has {len(problems)} fault(s):\n{listing}", problems=tuple(problems))


def _plain(value: Any) -> Any:
    """A copy with arrays as tuples, since sections are frozen, and with paths in the home folder written out."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(HOME):
        return os.path.expanduser(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


# --- overrides and shared sections ----------------------------------------------------------------------------------


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError("an override is key=value", value=override, fix="write it as learner.lr=3e-6")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    stages = tree.get("stage", [])
    labels = [_label(stage) for stage in stages]
    if parts[0] in labels:
        for stage, label in zip(stages, labels, strict=True):
            if label == parts[0]:
                _set(stage, parts[1:], value, override)
        return
    if parts[0] == "stage":
        raise RecipeError(
            "an override names a stage", value=override, fix=f"begin its key with one of {', '.join(labels)}"
        )
    known = [*Recipe.model_fields, *SHARED_SECTIONS, *labels]
    if parts[0] not in known:
        raise RecipeError(f"unknown key {key}", value=text, fix=_suggest(parts[0], known))
    _set(tree, parts, value, override)
    if parts[0] in SHARED_SECTIONS:
        for stage in stages:  # an override beats what the stage itself says
            for section in (parts[0], *(above for above, below in ON_TOP_OF.items() if below == parts[0])):
                if section in stage:
                    _set(stage, [section, *parts[1:]], value, override)


def _set(table: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{part} is a value, not a table", value=override, fix="shorten the key")
    if not parts:
        raise RecipeError("a stage cannot be replaced by a value", value=override, fix="name one of its keys")
    for other in INSTEAD_OF.get(parts[-1], ()):
        table.pop(other, None)
    table[parts[-1]] = copy.deepcopy(value)  # the next override may change a key of it in one stage alone


def _share_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the shared sections under every stage whose kind has them; what the stage says wins."""
    shared = {key: tree[key] for key in SHARED_SECTIONS if key in tree}
    rest = {key: value for key, value in tree.items() if key not in SHARED_SECTIONS}
    return rest | {"stage": [_with_shared(stage, shared) for stage in rest["stage"]]} if "stage" in rest else rest


def _with_shared(stage: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = STAGE_KINDS.get(str(stage.get("kind")))
    if kind is None:
        return stage
    merged = _merge({key: value for key, value in shared.items() if key in kind.model_fields}, stage)
    for above, below in ON_TOP_OF.items():
        if isinstance(merged.get(above), Mapping) and isinstance(merged.get(below), Mapping):
            merged[above] = _merge(merged[below], merged[above])
    return merged


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        for other in INSTEAD_OF.get(key, ()):
            if other not in top:
                merged.pop(other, None)
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


# --- faults ---------------------------------------------------------------------------------------------------------


def _check(tree: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe, where its sections are good in themselves, and every fault that can be found.

    What is wrong between keys shows only when each key is good: unknown ones are left out, and counts out of bounds
    put within them, for a second look; but not between such a count and its neighbours, since nobody wrote that one.
    """
    recipe, faults = _parse(tree)
    if recipe is not None:
        return recipe, recipe_faults(recipe)
    mended = _plain(tree)
    for fault in faults:
        _mend(mended, fault)
    stand_in, others = _parse(mended)
    told = {(fault["loc"], fault["type"]) for fault in faults}
    made_up = [fault["loc"] for fault in faults if fault["type"] in BOUNDS]
    faults += [
        fault
        for fault in others
        if (fault["loc"], fault["type"]) not in told
        and not any(place[: len(fault["loc"])] == fault["loc"] for place in made_up)
    ]
    problems = list(_explain_all(faults, tree))
    return None, problems + (recipe_faults(stand_in) if stand_in is not None else list(_faults_of_parts(mended)))


def _parse(tree: Mapping[str, Any]) -> tuple[Recipe | None, list[Any]]:
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _mend(tree: dict[str, Any], fault: Any) -> None:
    if fault["type"] != "extra_forbidden" and fault["type"] not in BOUNDS:
        return
    *above, key = _keys(fault, tree)
    table: Any = tree
    for part in above:
        table = table[part]
    if fault["type"] == "extra_forbidden":
        del table[key]
        return
    bound, step = BOUNDS[fault["type"]]
    limit = fault["ctx"][bound]
    if isinstance(limit, int) and isinstance(table, dict):
        table[key] = limit + step


def _faults_of_parts(tree: Mapping[str, Any]) -> Iterator[str]:
    """What is not there of all that the sections which are good in themselves refer to."""
    with suppress(ValidationError):
        yield from model_faults(ModelSettings.model_validate(tree.get("model")))
    before: dict[str, str] = {}
    stage_of_any_kind = TypeAdapter(AnyStage)
    for table in tree.get("stage", ()):
        with suppress(ValidationError):
            yield from input_faults(stage_of_any_kind.validate_python(table), before)
        before[_label(table)] = str(table.get("kind"))


def _explain_all(faults: Sequence[Any], tree: Mapping[str, Any]) -> Iterator[str]:
    """Each fault as: where, what is wrong, the value, the fix. A value of none of a key's types is one fault."""
    for location, group in groupby(faults, key=lambda fault: _locate(fault, tree)):
        found = list(group)
        wanted = list(dict.fromkeys(filter(None, map(_wanted, found))))
        others = [fault for fault in found if _wanted(fault) is None]
        for fault in others:
            yield from _explain(fault, location, tree)
        if not others:
            wrong = "unknown value" if all(fault["type"] == "literal_error" for fault in found) else "wrong type"
            yield f"{location}: {wrong}; got {_shown(found[0]['input'])}; write {' or '.join(wanted)}"


def _wanted(fault: Any) -> str | None:
    """What to write in place of a value of a wrong type, as TOML spells it."""
    value = fault["input"]
    words = {
        "float_type": "a number",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "a string in quotes" + ("" if isinstance(value, Mapping | tuple) else f': "{value}"'),
        "tuple_type": f"an array: {json.dumps([value], default=str)}",
        "dict_type": "a table",
        "model_type": "a table",
        "literal_error": fault.get("ctx", {}).get("expected"),
    }
    return words.get(fault["type"])


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def _explain(fault: Any, location: str, tree: Mapping[str, Any]) -> Iterator[str]:
    if fault["type"] == "extra_forbidden":
        section = _section_of(fault, tree)
        fix = _suggest(str(fault["loc"][-1]), list(section.model_fields) if section else [])
        yield f"{location}: unknown key; got {_shown(fault['input'])}; {fix}"
    elif fault["type"] == "missing":
        yield f"{location}: missing; add it"
    elif fault["type"] == "union_tag_invalid":
        received = fault["ctx"]["tag"]
        yield f"{location}: unknown kind; got '{received}'; {_suggest(str(received), list(STAGE_KINDS))}"
    elif fault["type"] == "union_tag_not_found":
        yield f"{location}: a stage needs a kind; set kind to one of {', '.join(STAGE_KINDS)}"
    elif (limited := _limited(fault)) is not None:
        wrong, fix = limited
        yield f"{location}: {wrong}; got {_shown(fault['input'])}; {fix}"
    else:
        value = "" if isinstance(fault["input"], Mapping) else f"; got {_shown(fault['input'])}"
        for message in fault["msg"].removeprefix("Value error, ").splitlines():
            yield f"{location}: {message}{value}"


def _limited(fault: Any) -> tuple[str, str] | None:
    """What is wrong with a value of the right type that a key does not take, and the fix."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in BOUNDS:
        bound, _ = BOUNDS[kind]
        words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}[bound]
        return f"must be {words} {context[bound]}", "raise it" if bound in ("gt", "ge") else "lower it"
    if kind == "finite_number":
        return "must be a finite number", "write one"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}", "leave out what it does not allow"
    if kind == "too_short":
        return f"must have at least {context['min_length']}", "add one"
    return None


def _keys(fault: Any, tree: Mapping[str, Any]) -> list[int | str]:
    """The place of a fault in the tree: without the names by which pydantic tells a key's types apart."""
    parts = list(fault["loc"])
    if parts[0] == "stage":
        del parts[2:3]  # the kind
    keys: list[int | str] = []
    value: Any = tree
    for part in parts:
        is_there = _holds(value, part)
        if not is_there and fault["type"] != "missing":
            break
        keys.append(part)
        value = value[part] if is_there else None
    return keys


def _holds(value: Any, part: int | str) -> bool:
    if isinstance(value, tuple):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def _locate(fault: Any, tree: Mapping[str, Any]) -> str:
    """The dotted place of a fault as the user wrote it."""
    keys = _keys(fault, tree)
    if len(keys) > 1 and keys[0] == "stage":
        stage = tree["stage"][keys[1]]
        keys = [stage.get("name") or stage.get("kind") or f"stage[{keys[1]}]", *keys[2:]]
    return ".".join(map(str, keys))


def _section_of(fault: Any, tree: Mapping[str, Any]) -> type[BaseModel] | None:
    """The section that should hold a fault's last key."""
    keys = _keys(fault, tree)[:-1]
    model: type[BaseModel] | None = Recipe
    if keys and keys[0] == "stage":
        model, keys = STAGE_KINDS.get(tree["stage"][keys[1]]["kind"]), keys[2:]
    for key in keys:
        model = model if isinstance(key, int) else _child(model, key)
    return model


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
