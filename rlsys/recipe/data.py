"""Which rows a stage learns from: sources, mixture, filters, chat template and cuts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError

from rlsys.errors import DataError
from rlsys.recipe.section import Section

Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A TOML array of strings."""

TemplateName = Literal["own", "tulu", "chatml", "llama3"]
MarkerRule = Literal["refuse", "escape"]
OverlongRule = Literal["cut", "drop"]
DuplicateScope = Literal["row", "prompt"]


class NearDuplicateSettings(Section):
    """MinHash near-duplicates (datasketch); of each group the first row in source order stays."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Estimated Jaccard similarity of the word n-grams at which two rows count as the same."""
    ngram_words: Annotated[int, Field(ge=1)] = 5
    """Words of an n-gram."""
    num_permutations: Annotated[int, Field(ge=16)] = 128
    """MinHash's; more estimate better and take longer."""
    scope: DuplicateScope = "row"
    """What is compared: prompt and response, or the prompt alone."""


class FilterSettings(Section):
    """What is removed before a source is counted. Off by default; every removed row is counted by its filter."""

    other_models: bool = False
    """Removes rows whose assistant names another model or its maker (`rlsys.data.filters.OTHER_MODELS`)."""
    keywords: Names = ()
    """Further words or phrases that the assistant must not say; whole words, case ignored."""
    min_characters: Annotated[int, Field(ge=0)] = 0
    """Of all contents together."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Of all contents together."""
    max_messages: Annotated[int, Field(ge=1)] | None = None
    """Of a conversation."""
    languages: Names = ()
    """ISO 639-1 codes to keep, such as ["en"]; detected by seeded langdetect, about 11 ms a row."""
    exact_duplicates: DuplicateScope | None = None
    """`row`: equal prompt and response; `prompt`: equal prompts. White space and case do not count."""
    near_duplicates: NearDuplicateSettings | None = None

    def _faults(self) -> Iterator[str]:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            yield (
                f"max_characters must be at least min_characters; got {self.max_characters} and {self.min_characters}"
            )


class SourceSettings(Section):
    """One data set of a mixture."""

    path: str
    """A file (.jsonl, .json, .parquet, each also .gz), a folder of them or one that `datasets` saved, a glob, or
    `hf:owner/name` for a data set of the hub."""
    name: str = ""
    """Absent: the file's or folder's name."""
    take: int | float = 1.0
    """An integer: so many rows; a float: so many times the source (0.5 draws half, 2.5 repeats twice and draws)."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Of a hub or saved data set."""
    revision: str | None = None
    """Commit of a hub data set; without one a run is reproducible only until the data set changes."""
    streaming: bool = False
    """Reads a hub data set without downloading it first."""
    licence: str = ""
    """For the data card, such as `MIT`."""
    synthetic: bool = False
    """Written by a model; a mark in the data card."""
    filters: FilterSettings | None = None
    """Instead of the mixture's."""

    def _faults(self) -> Iterator[str]:
        if not 0 < self.take < float("inf"):
            yield f"take must be positive and finite; got {self.take}; leave the source out to take nothing"

    @property
    def label(self) -> str:
        """The name under which rows, card and metrics know this source."""
        if self.name:
            return self.name
        if self.path.startswith("hf:"):
            return self.path.removeprefix("hf:")
        return Path(self.path).name.removesuffix(".gz").rsplit(".", 1)[0]


def parse_source(name: str) -> SourceSettings:
    """A source from one string; of a hub data set, subset, split and revision may follow a question mark.

    Raises:
        DataError: an option that a hub data set does not have.

    >>> parse_source("hf:openai/gsm8k?subset=main&split=test").split
    'test'
    """
    path, _, query = name.partition("?") if name.startswith("hf:") else (name, "", "")
    options = dict(parse_qsl(query))
    if options.keys() - {"subset", "split", "revision"}:
        raise DataError("a hub data set takes subset, split and revision", value=name, fix="mend what follows the `?`")
    try:
        return SourceSettings.model_validate({"path": path, **options})
    except ValidationError as error:
        raise DataError(f"not a data set: {error.errors()[0]['msg']}", value=name) from error


class TemplatingSettings(Section):
    """How messages become token ids."""

    template: TemplateName | None = None
    """`own`: the tokenizer's chat template, which must be there. Absent: the tokenizer's own, or tulu where it has
    none. The others replace it, and are saved with the model."""
    markers: MarkerRule = "refuse"
    """What happens to a row whose content holds text that would become, or looks like, a marker of the template."""
    allowed_markers: Names = ()
    """Added tokens that content may hold, such as ["<think>", "</think>"]."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a row; what is longer is cut on the right."""
    max_prompt_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a prompt; what is longer is cut on the left. Absent: of prompts to sample from, as many as
    `rollout.vllm.max_model_len` leaves beside the response, where it is given."""
    overlong: OverlongRule = "cut"
    """`drop`: rows and prompts that would be cut are dropped and counted instead."""


class DataSettings(Section):
    """What a stage learns from."""

    source: Annotated[tuple[SourceSettings, ...], Field(strict=False)] = ()
    """In order: `[[data.source]]`."""
    seed: int = 0
    """Of what is drawn and in which order; the recipe's seed is added to it."""
    wrong_rows: Literal["drop", "refuse"] = "drop"
    """`refuse`: the first wrong row stops the run, naming file, line and reason."""
    filters: FilterSettings = FilterSettings()
    templating: TemplatingSettings = TemplatingSettings()

    def _faults(self) -> Iterator[str]:
        labels = [source.label for source in self.source]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            yield f"two sources are called {', '.join(twice)}; give each a name of its own"
