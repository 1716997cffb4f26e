"""Every key of a recipe with its type, default and meaning, from the sections' own docstrings.

python -m rlsys.recipe.reference > docs/recipe.md
"""

import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlsys.recipe.recipe import SHARED_SECTIONS, STAGE_KINDS, Recipe
from rlsys.recipe.synthesis import PersonaSettings, SelfInstructSettings

TYPE_NAMES = {str: "string", int: "whole number", float: "number", bool: "`true` or `false`", Any: "anything"}

HEAD = f"""# The recipe

Every key, with its type, default and meaning; written by `python -m rlsys.recipe.reference`, kept true by a test.

A recipe is TOML. `[[stage]]` tables run in order; each has a `kind`. Some top-level tables are defaults for every stage
that has such a section: {", ".join(f"`[{section}]`" for section in SHARED_SECTIONS)}. What a stage
says itself wins, and an override on the command line (`rlvr.learner.lr=1e-6`; `learner.lr=1e-6` for all stages and
their value models; `seed=1`) beats both.
`base = "other.toml"` takes everything from another recipe of the same folder but what this one says itself, stages by
name. A path may be `stage:NAME/FILE` (what an earlier stage wrote), `~/FILE` or, for data and models, `hf:owner/name`.
"""


def render() -> str:
    """The page."""
    return "\n".join([HEAD, *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    seen: set[type[BaseModel]] = set()
    yield from _section("Top level", Recipe, seen)
    for kind, stage in STAGE_KINDS.items():
        yield from _section(f'`[[stage]]` with `kind = "{kind}"`', stage, seen)
    yield from _section("A file for `rlsys data personas`", PersonaSettings, seen)
    yield from _section("A file for `rlsys data self-instruct`", SelfInstructSettings, seen)


def _section(title: str, model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    seen.add(model)
    yield f"## {title}\n"
    yield f"{(model.__doc__ or '').strip()}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    inside: list[tuple[str, type[BaseModel]]] = []
    for key, field in model.model_fields.items():
        if key == "kind" and field.is_required():
            continue  # in the title
        section = _section_of(field.annotation)
        if section is not None:
            inside.append((key, section))
        meaning = (field.description or "").replace("\n", " ").replace("|", "\\|")
        if section is not None:
            meaning = f"{meaning} See {section.__name__}.".strip()
        default = _default(field.default, field.default_factory)
        yield f"| `{key}` | {_type_name(field.annotation)} | {default} | {meaning} |"
    yield ""
    for _, section in inside:
        if section not in seen and section not in STAGE_KINDS.values():
            yield from _section(section.__name__, section, seen)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    candidates += [inner for candidate in candidates for inner in get_args(candidate)]
    found = list({c: None for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)})
    return found[0] if len(found) == 1 else None


def _type_name(annotation: Any) -> str:
    """In TOML's words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, UnionType):
        names = [_type_name(each) for each in inner if each is not NoneType]
        return " or ".join(dict.fromkeys(names))
    if origin is tuple:
        of = dict.fromkeys(_type_name(each) for each in inner if each is not Ellipsis)
        return f"array of {' or '.join(of)}" if Ellipsis in inner else f"array of {len(inner)}: {', '.join(of)}"
    if origin in (dict, Mapping):
        return f"table of {_type_name(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return TYPE_NAMES[annotation]


def _default(default: Any, factory: Any) -> str:
    if factory is not None:
        return "empty"
    if default is PydanticUndefined:
        return "**needed**"
    if isinstance(default, BaseModel):
        return "its own"
    return "absent" if default is None else f"`{json.dumps(default)}`".replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
