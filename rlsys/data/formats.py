"""Recognises the forms in which rows are published, by their keys, and brings each to `Row`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlsys.data.drops import RowRefused
from rlsys.data.ground_truths import boxed_answer, check_of_dataset, gsm8k_answer, ifeval_check, published_check
from rlsys.data.records import is_missing
from rlsys.data.row import Origin, Row
from rlsys.types import Check, Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

Parsed = dict[str, Any]
"""Fields of a `Row` other than its id, source and origin."""


class Format(NamedTuple):
    """One form of rows: recognised where all `keys` are present, and read by `parse`."""

    name: str
    keys: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], Iterator[Parsed]]


def rows_of(record: Mapping[str, Any], *, source: str, ordinal: int, origin: Origin) -> list[Row]:
    """The rows that one record holds: one, or one for each instance of a self-instruct task.

    Args:
        record: a JSON object.
        source: name of the source, for ids; a row's own `source` goes before it.
        ordinal: the record's place in its source, from 0.
        origin: file and line; a row that a mixture wrote keeps its first origin.

    Raises:
        RowRefused: with the reason under which it is counted.
    """
    form = recognise(record)
    parsed = list(form.parse(record))
    if not parsed:
        raise RowRefused("empty_row", "the row holds nothing")
    own_source = record.get("source")
    identity: dict[str, Any] = {"source": own_source if isinstance(own_source, str) and own_source else source}
    identity |= {"id": f"{source}/{ordinal}", "origin": origin} | _first_identity(record)
    if len(parsed) == 1:
        return [Row(**identity, **parsed[0])]
    return [Row(**identity | {"id": f"{identity['id']}.{index}"}, **fields) for index, fields in enumerate(parsed)]


def recognise(record: Mapping[str, Any]) -> Format:
    """The first form whose keys the record has.

    Raises:
        RowRefused: `unknown_format`.
    """
    present = {key for key, value in record.items() if not is_missing(value)}
    for form in FORMATS:
        if present.issuperset(form.keys):
            return form
    known = "; ".join(" + ".join(form.keys) for form in FORMATS)
    raise RowRefused("unknown_format", f"keys {sorted(record)} are no known form", fix=f"known forms: {known}")


def _first_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Id and origin that `row_to_json` wrote, if it wrote the record."""
    origin = record.get("origin")
    if not isinstance(origin, Mapping) or not isinstance(record.get("id"), str):
        return {}
    file, line = origin.get("file"), origin.get("line")
    if not isinstance(file, str) or not isinstance(line, int):
        return {}
    return {"id": record["id"], "origin": Origin(file, line)}


def text_of(value: object, field: str) -> str:
    """A text field, or the joined text parts of one in the form `[{"type": "text", "text" or "value": …}]`.

    Raises:
        RowRefused: `not_text`, `lone_surrogate` or `nul_character`.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "".join(_part_text(part, field) for part in value)
    if not isinstance(value, str):
        raise RowRefused("not_text", f"{field} is not text but {type(value).__name__}")
    if "\0" in value:
        raise RowRefused("nul_character", f"{field} holds a NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowRefused("lone_surrogate", f"{field} holds half a surrogate pair at {error.start}") from None
    return value


def messages_of(value: object, field: str = "messages") -> tuple[Message, ...]:
    """Messages under the names this project uses: role, content, and weight or reasoning_content where given.

    Raises:
        RowRefused: not a list of messages, an unknown role, content that is not text, a weight out of place.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowRefused("not_messages", f"{field} is not a list of messages")
    return tuple(_message(message, f"{field}[{index}]") for index, message in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowRefused("not_messages", f"{field} is not an object")
    written = value.get("role", value.get("from"))
    role = ROLES.get(written.lower()) if isinstance(written, str) else None
    if role is None:
        raise RowRefused("unknown_role", f"{field} has the role {written!r}", fix=f"use one of {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise RowRefused("tool_calls", f"{field} calls tools, which training data does not support")
    content = value.get("content", value.get("value"))
    message: dict[str, Any] = {"role": role, "content": text_of(content, f"{field}.content")}
    reasoning = value.get("reasoning_content")
    if role == "assistant" and not is_missing(reasoning) and reasoning != "":
        message["reasoning_content"] = text_of(reasoning, f"{field}.reasoning_content")
    weight = value.get("weight", value.get("loss_weight"))
    if weight is not None:
        _set_weight(message, weight, field)
    return message


def _set_weight(message: dict[str, Any], weight: object, field: str) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise RowRefused(
            "bad_weight", f"{field} has the weight {weight!r}", fix="a weight is a finite number from 0 on"
        )
    if message["role"] == "assistant":
        message["weight"] = float(weight)
    elif weight != 0:
        raise RowRefused(
            "weight_on_other_role",
            f"{field} weighs the loss of a {message['role']} message; loss is on assistants only",
        )


def _part_text(part: object, field: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise RowRefused("not_text", f"{field} has a part of type {kind!r}; only text is supported")
    text = part.get("text", part.get("value"))
    if not isinstance(text, str):
        raise RowRefused("not_text", f"{field} has a part without text")
    return text


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _with_system(record: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = record.get("system", record.get("system_prompt"))
    if is_missing(system) or system == "":
        return messages
    return ({"role": "system", "content": text_of(system, "system")}, *messages)


def _turns(value: object, field: str, *, role: str) -> tuple[Message, ...]:
    """A string as one message of the role, or a list of messages (one message alone counts as a list)."""
    if isinstance(value, str):
        return ({"role": role, "content": text_of(value, field)},)
    return messages_of([value] if isinstance(value, Mapping) else value, field)


def _conversation(record: Mapping[str, Any]) -> Iterator[Parsed]:
    key = "messages" if not is_missing(record.get("messages")) else "conversations"
    messages = _with_system(record, messages_of(record[key], key))
    yield {"messages": messages, "checks": _checks(record)}


def _checks(record: Mapping[str, Any]) -> tuple[Check, ...]:
    checks = record.get("checks")
    if is_missing(checks):
        return published_check(record)
    if not isinstance(checks, Sequence) or isinstance(checks, str):
        raise RowRefused("bad_checks", "checks is not a list")
    return tuple(_check(check) for check in checks)


def _check(value: object) -> Check:
    if not isinstance(value, Mapping) or not isinstance(value.get("verifier"), str) or "ground_truth" not in value:
        raise RowRefused("bad_checks", f"a check is {{verifier, ground_truth}}, not {str(value)[:100]}")
    weight = value.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise RowRefused("bad_checks", f"a check's weight is a positive number, not {weight!r}")
    return Check(value["verifier"], value["ground_truth"], float(weight))


def _checked_prompt(record: Mapping[str, Any]) -> Iterator[Parsed]:
    messages = _with_system(record, _turns(record["prompt"], "prompt", role="user"))
    yield {"messages": messages, "checks": _checks(record)}


def _ifeval(record: Mapping[str, Any]) -> Iterator[Parsed]:
    prompt = _with_system(record, _turns(record["prompt"], "prompt", role="user"))
    yield {"messages": prompt, "checks": (ifeval_check(record["instruction_id_list"], record["kwargs"]),)}


def _verl(record: Mapping[str, Any]) -> Iterator[Parsed]:
    prompt = _turns(record["prompt"], "prompt", role="user")
    reward_model = record["reward_model"]
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if is_missing(truth):
        raise RowRefused("no_ground_truth", "reward_model has no ground_truth")
    name = f"{record.get('data_source', '')} {record.get('ability', '')}"
    if not isinstance(truth, Mapping):
        yield {"messages": prompt, "checks": (check_of_dataset(name, truth),)}
        return
    check = check_of_dataset(name, truth.get("target", truth.get("answer")))
    solution = truth.get("solution")
    response = () if is_missing(solution) else (_assistant(text_of(solution, "reward_model.ground_truth.solution")),)
    yield {"messages": (*prompt, *response), "checks": (check,)}


def _problem(record: Mapping[str, Any]) -> Iterator[Parsed]:
    solution = text_of(record["solution"], "solution")
    answer = record.get("answer")
    gold = boxed_answer(solution) if is_missing(answer) else text_of(str(answer), "answer")
    if not gold:
        raise RowRefused("no_ground_truth", "the solution has no boxed answer")
    messages = (_user(text_of(record["problem"], "problem")), _assistant(solution))
    yield {"messages": messages, "checks": (Check("math", gold),)}


def _question(record: Mapping[str, Any]) -> Iterator[Parsed]:
    answer = record["answer"]
    answer = text_of(str(answer) if isinstance(answer, int | float) else answer, "answer")
    gold = gsm8k_answer(answer)
    messages = _with_system(record, (_user(text_of(record["question"], "question")), _assistant(answer)))
    yield {"messages": messages, "checks": (Check("gsm8k", gold),) if gold is not None else _checks(record)}


def _instruction(record: Mapping[str, Any]) -> Iterator[Parsed]:
    yield _task(record, record, text_of(record["instruction"], "instruction"))


def _instances(record: Mapping[str, Any]) -> Iterator[Parsed]:
    instruction = text_of(record["instruction"], "instruction")
    instances = record["instances"]
    if not isinstance(instances, Sequence) or not all(isinstance(instance, Mapping) for instance in instances):
        raise RowRefused("not_messages", "instances is not a list of objects")
    for instance in instances:
        yield _task(record, instance, instruction)


def _task(record: Mapping[str, Any], instance: Mapping[str, Any], instruction: str) -> Parsed:
    given = instance.get("input")
    content = instruction if is_missing(given) or given == "" else f"{instruction}\n\n{text_of(given, 'input')}"
    output = _assistant(text_of(instance.get("output"), "output"))
    return {"messages": _with_system(record, (_user(content), output))}


def _completion(record: Mapping[str, Any]) -> Iterator[Parsed]:
    key = "completion" if not is_missing(record.get("completion")) else "response"
    prompt = _turns(record["prompt"], "prompt", role="user")
    completion = _turns(record[key], key, role="assistant")
    yield {"messages": _with_system(record, (*prompt, *completion)), "checks": _checks(record)}


def _pair(record: Mapping[str, Any]) -> Iterator[Parsed]:
    chosen = _turns(record["chosen"], "chosen", role="assistant")
    rejected = _turns(record["rejected"], "rejected", role="assistant")
    context = next(
        (record[key] for key in ("messages", "conversations", "prompt", "question") if record.get(key)), None
    )
    shared = _common_length(chosen, rejected)
    if context is None or shared:
        # Whole conversations on both sides: what they share is the prompt, and a prompt field only repeats it.
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = _turns(context, "prompt", role="user")
    prompt = _with_system(record, prompt)
    _require_pair(prompt, chosen, rejected)
    yield {
        "messages": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "margin": _margin(record),
        "checks": _checks(record),
    }


def _common_length(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both conversations start with, not counting the last of either."""
    length = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if (left["role"], left["content"]) != (right["role"], right["content"]):
            break
        length += 1
    return length


def _require_pair(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    if not prompt:
        raise RowRefused("no_prompt", "a pair needs a prompt that both responses answer")
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not response or response[-1]["role"] != "assistant":
            raise RowRefused("no_response", f"{name} does not end with an assistant message")
    if [message["content"] for message in chosen] == [message["content"] for message in rejected]:
        raise RowRefused("equal_pair", "chosen and rejected are the same")


def _margin(record: Mapping[str, Any]) -> float | None:
    margin = record.get("margin")
    if is_missing(margin):
        chosen = record.get("score_chosen", record.get("chosen_score", record.get("chosen_rating")))
        rejected = record.get("score_rejected", record.get("rejected_score", record.get("rejected_rating")))
        if is_missing(chosen) or is_missing(rejected):
            return None
        margin = _number(chosen, "chosen score") - _number(rejected, "rejected score")
    return _number(margin, "margin")


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowRefused("bad_number", f"{field} is {value!r}, not a finite number")
    return float(value)


def _pair_of_conversations(record: Mapping[str, Any]) -> Iterator[Parsed]:
    yield from _pair({**record, "chosen": record["chosen_messages"], "rejected": record["rejected_messages"]})


def _tree(record: Mapping[str, Any]) -> Iterator[Parsed]:
    """OpenAssistant: at each step the reply ranked best, or the first where none is ranked."""
    node = record.get("prompt") if isinstance(record.get("prompt"), Mapping) else record
    turns = []
    while isinstance(node, Mapping):
        turns.append({"role": node.get("role"), "content": node.get("text")})
        replies = [reply for reply in node.get("replies") or () if isinstance(reply, Mapping)]
        node = min(replies, key=_rank, default=None)
    messages = messages_of(turns, "replies")
    if messages[-1]["role"] == "user" and len(messages) > 1:
        messages = messages[:-1]
    yield {"messages": messages}


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, int | float) else math.inf


def _text(record: Mapping[str, Any]) -> Iterator[Parsed]:
    text = text_of(record["text"], "text")
    if not text:
        raise RowRefused("empty_row", "the text is empty")
    yield {"text": text}


def _prompt_only(record: Mapping[str, Any]) -> Iterator[Parsed]:
    yield {"messages": _with_system(record, _turns(record["prompt"], "prompt", role="user"))}


FORMATS: tuple[Format, ...] = (
    Format("pair", ("chosen", "rejected"), _pair),
    Format("pair of conversations", ("chosen_messages", "rejected_messages"), _pair_of_conversations),
    Format("ifeval", ("prompt", "instruction_id_list", "kwargs"), _ifeval),
    Format("verl", ("prompt", "reward_model"), _verl),
    Format("messages", ("messages",), _conversation),
    Format("conversations", ("conversations",), _conversation),
    Format("tree", ("message_tree_id", "prompt"), _tree),
    Format("message with replies", ("text", "role", "replies"), _tree),
    Format("instances", ("instruction", "instances"), _instances),
    Format("instruction", ("instruction", "output"), _instruction),
    Format("math", ("problem", "solution"), _problem),
    Format("question", ("question", "answer"), _question),
    Format("completion", ("prompt", "completion"), _completion),
    Format("response", ("prompt", "response"), _completion),
    Format("checked prompt", ("prompt", "checks"), _checked_prompt),
    Format("checked prompt", ("prompt", "ground_truth"), _checked_prompt),
    Format("text", ("text",), _text),
    Format("prompt", ("prompt",), _prompt_only),
)
"""In order of preference: the first whose keys are all present and not null reads the row."""
