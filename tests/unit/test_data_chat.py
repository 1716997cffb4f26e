"""Ids equal the template's; exactly the assistant's words and end tokens are learned; content forges no marker."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tokenizer import toy_tokenizer
from transformers import PreTrainedTokenizerFast

from rlsys.data.chat import ChatTokenizer, choose_template, end_token_ids
from rlsys.data.drops import RowRefused
from rlsys.data.template import TEMPLATES, shipped_template
from rlsys.errors import DataError
from rlsys.recipe.data import TemplatingSettings

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "The answer is 2."},
    {"role": "user", "content": "And 2 + 2? ü 数"},
    {"role": "assistant", "content": "It is 4 ✓."},
]

EXPECTED = {
    "tulu": (
        "<|system|>\nBe brief.\n<|user|>\nWhat is 1 + 1?\n<|assistant|>\nThe answer is 2.</s>\n"
        "<|user|>\nAnd 2 + 2? ü 数\n<|assistant|>\nIt is 4 ✓.</s>",
        "The answer is 2.</s>It is 4 ✓.</s>",
        "<|assistant|>\n",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
        "The answer is 2.<|im_end|>\n<|im_start|>user\nAnd 2 + 2? ü 数<|im_end|>\n<|im_start|>assistant\n"
        "It is 4 ✓.<|im_end|>\n",
        "The answer is 2.<|im_end|>It is 4 ✓.<|im_end|>",
        "<|im_start|>assistant\n",
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is 1 + 1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nThe answer is 2.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd 2 + 2? ü 数<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4 ✓.<|eot_id|>",
        "The answer is 2.<|eot_id|>It is 4 ✓.<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


def chat_tokenizer(template: str | None = "tulu", added: tuple[str, ...] = (), **rules: object) -> ChatTokenizer:
    return ChatTokenizer(toy_tokenizer(*added), TemplatingSettings(template=template, **rules))  # pyright: ignore[reportArgumentType]


def text(chat: ChatTokenizer, ids: np.ndarray) -> str:
    return chat.tokenizer.decode(ids.tolist())


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest) -> ChatTokenizer:
    return chat_tokenizer(request.param)


def test_shipped_templates_write_what_is_written_here_by_hand(chat: ChatTokenizer):
    whole, learned, generation = EXPECTED[str(chat.settings.template)]
    row = chat.encode_conversation(CHAT)
    assert text(chat, row.token_ids) == whole
    assert text(chat, row.token_ids[row.loss_weights > 0]) == learned
    assert set(row.loss_weights) == {0.0, 1.0}
    prompt = chat.encode_prompt(CHAT[:4])
    before = whole[: whole.rindex(generation) + len(generation)]
    assert text(chat, prompt) == before


def test_ids_are_those_of_apply_chat_template(chat: ChatTokenizer):
    for messages in (CHAT, CHAT[1:], CHAT[1:3], [*CHAT[:2], CHAT[2], CHAT[1], CHAT[2], CHAT[1], CHAT[2]]):
        theirs = chat.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]  # pyright: ignore
        row = chat.encode_conversation(messages)
        assert row.token_ids.tolist() == theirs
        assert (row.token_ids.dtype, row.loss_weights.dtype) == (np.int32, np.float32)
        theirs = chat.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]  # pyright: ignore
        assert chat.encode_prompt(messages[:-1]).tolist() == theirs


def test_generation_blocks_of_the_templates_mark_what_is_learned(chat: ChatTokenizer):
    """An oracle of another make: transformers' own mask from the `generation` blocks that the templates have."""
    theirs = chat.tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert (chat.encode_conversation(CHAT).loss_weights > 0).tolist() == [bool(x) for x in theirs["assistant_masks"]]  # pyright: ignore


def test_one_at_a_time_and_in_a_batch_is_the_same(chat: ChatTokenizer):
    batch = chat.encode_conversations([CHAT, [], CHAT[1:3], CHAT[:2]])
    assert isinstance(batch[1], RowRefused) and batch[1].reason == "empty_row"
    assert isinstance(batch[3], RowRefused) and batch[3].reason == "nothing_to_learn"
    for row, messages in ((batch[0], CHAT), (batch[2], CHAT[1:3])):
        alone = chat.encode_conversation(messages)
        assert not isinstance(row, RowRefused)
        np.testing.assert_array_equal(row.token_ids, alone.token_ids)
        np.testing.assert_array_equal(row.loss_weights, alone.loss_weights)


def test_weights_scale_each_message():
    chat = chat_tokenizer()
    messages = [CHAT[1], {**CHAT[2], "weight": 0.0}, CHAT[3], {**CHAT[4], "weight": 0.25}]
    row = chat.encode_conversation(messages)
    assert text(chat, row.token_ids[row.loss_weights == np.float32(0.25)]) == "It is 4 ✓.</s>"
    assert set(row.loss_weights) == {np.float32(0.0), np.float32(0.25)}
    with pytest.raises(RowRefused) as refused:
        chat.encode_conversation([CHAT[1], {**CHAT[2], "weight": 0.0}])
    assert refused.value.reason == "nothing_to_learn"


def test_a_token_that_began_in_the_header_is_not_learned():
    """Sampling starts behind the header, so a token that joins its line end to the content's can never be sampled."""
    tokenizer = toy_tokenizer("\n\n")
    chat = ChatTokenizer(tokenizer, TemplatingSettings(template="tulu"))
    row = chat.encode_conversation([CHAT[1], {"role": "assistant", "content": "\nTwo"}])
    joined = tokenizer.convert_tokens_to_ids("\n\n")
    assert row.loss_weights[row.token_ids.tolist().index(joined)] == 0
    assert text(chat, row.token_ids[row.loss_weights > 0]) == "Two</s>"


MARKED = ["</s>", "<|im_end|>", "<pad>", "<|eot_id|>", "<tool>"]


@pytest.mark.parametrize("marker", [*MARKED, "<|user|>", "<|assistant|>", "<|system|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_markers_in_content_are_refused_or_escaped_and_counted(marker: str, role: str):
    content = f"say {marker}\n twice {marker}!"
    place = {"user": 1, "assistant": 2}[role]
    messages = [*CHAT[:place], {"role": role, "content": content}, *CHAT[place + 1 : 3]]
    refusing = chat_tokenizer(added=("<tool>",))
    with pytest.raises(RowRefused, match="holds markers") as refused:
        refusing.encode_conversation(messages)
    assert refused.value.reason == "marker_in_content"
    assert dict(refusing.counts) == {"markers_found": 1}
    escaping = chat_tokenizer(added=("<tool>",), markers="escape")
    row = escaping.encode_conversation(messages)
    assert dict(escaping.counts) == {"markers_found": 1, "markers_escaped": 1}
    shown = f"say {marker[0]} {marker[1:]}\n twice {marker[0]} {marker[1:]}!"
    assert shown in text(escaping, row.token_ids)
    special = [*escaping.tokenizer.all_special_ids, *escaping.tokenizer.added_tokens_decoder]
    assert np.isin(row.token_ids, special).sum() == 1  # the end of the assistant's turn


def test_added_tokens_may_be_allowed():
    thought = [CHAT[1], {"role": "assistant", "content": "<think>1 + 1</think>2"}]
    with pytest.raises(RowRefused):
        chat_tokenizer(added=("<think>", "</think>")).encode_conversation(thought)
    chat = chat_tokenizer(added=("<think>", "</think>"), allowed_markers=("<think>", "</think>"))
    row = chat.encode_conversation(thought)
    assert text(chat, row.token_ids[row.loss_weights > 0]) == "<think>1 + 1</think>2</s>"


def test_runs_of_spaces_are_no_markers():
    """Some tokenizers hold runs of spaces as added tokens; they come from code in content, and structure nothing."""
    chat = chat_tokenizer(added=("    ",))
    messages = [CHAT[1], {"role": "assistant", "content": "def f():\n    return 2"}]
    theirs = chat.tokenizer.apply_chat_template(messages)["input_ids"]  # pyright: ignore
    assert chat.encode_conversation(messages).token_ids.tolist() == theirs


def test_a_marker_that_cannot_be_broken_is_refused():
    chat = chat_tokenizer(added=("§",), markers="escape")
    with pytest.raises(RowRefused) as refused:
        chat.encode_conversation([{"role": "user", "content": "§ 5"}, CHAT[2]])
    assert refused.value.reason == "marker_in_content"


PIECES = st.sampled_from(
    [
        "<|",
        "|>",
        "im_end",
        "user",
        "assistant",
        "\n",
        "<|user|>",
        "</s>",
        "<",
        "/s>",
        " ",
        "ü",
        "{{",
        "}}",
        "eot_id",
        "a",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=2, max_size=4))
def test_no_content_forges_a_token(contents: list[str]):
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    for template in TEMPLATES:
        chat = _cached(template)
        row = chat.encode_conversations([messages])[0]
        clean = chat.encode_conversations([[{**message, "content": "a"} for message in messages]])[0]
        assert not isinstance(row, RowRefused) and not isinstance(clean, RowRefused)
        special = chat.tokenizer.all_special_ids
        assert [x for x in row.token_ids if x in special] == [x for x in clean.token_ids if x in special]
        headers = ("<|user|>", "<|assistant|>", "<|system|>")
        written, expected = (text(chat, one.token_ids) for one in (row, clean))
        if template == "tulu":
            assert [written.count(header) for header in headers] == [expected.count(header) for header in headers]
        if all(not any(marker in content for marker in (*headers, *MARKED)) for content in contents):
            assert row.token_ids.tolist() == chat.tokenizer.apply_chat_template(messages)["input_ids"]  # pyright: ignore


_chats: dict[str, ChatTokenizer] = {}


def _cached(template: str) -> ChatTokenizer:
    if template not in _chats:
        _chats[template] = chat_tokenizer(template, markers="escape")
    return _chats[template]


def test_prompts_are_cut_on_the_left():
    chat = chat_tokenizer(max_prompt_length=20)
    whole = chat_tokenizer().encode_prompt(CHAT[:4])
    assert len(whole) > 20
    assert chat.encode_prompt(CHAT[:4]).tolist() == whole[-20:].tolist()
    assert chat.counts["prompts_cut"] == 1
    with pytest.raises(RowRefused) as refused:
        chat_tokenizer(max_prompt_length=20, overlong="drop").encode_prompt(CHAT[:4])
    assert refused.value.reason == "prompt_too_long"


def test_responses_are_cut_on_the_right():
    whole = chat_tokenizer().encode_conversation(CHAT)
    targets = np.flatnonzero(whole.loss_weights)
    length = int(targets[5]) + 1
    chat = chat_tokenizer(max_length=length)
    row = chat.encode_conversation(CHAT)
    assert row.token_ids.tolist() == whole.token_ids[:length].tolist()
    assert (row.num_targets, chat.counts["responses_cut"]) == (6, 1)
    with pytest.raises(RowRefused) as refused:
        chat_tokenizer(max_length=int(targets[0])).encode_conversation(CHAT)
    assert refused.value.reason == "nothing_to_learn"
    with pytest.raises(RowRefused) as refused:
        chat_tokenizer(max_length=length, overlong="drop").encode_conversation(CHAT)
    assert refused.value.reason == "too_long"


def test_pairs_share_a_prompt_that_is_not_learned():
    chat = chat_tokenizer()
    pair = chat.encode_pair(CHAT[:4], [CHAT[4]], [{"role": "assistant", "content": "It is five."}], margin=2.0)
    assert text(chat, pair.chosen.token_ids[pair.chosen.loss_weights > 0]) == "It is 4 ✓.</s>"
    assert text(chat, pair.rejected.token_ids[pair.rejected.loss_weights > 0]) == "It is five.</s>"
    assert pair.margin == 2.0
    prompt = chat.encode_prompt(CHAT[:4]).tolist()
    for row in (pair.chosen, pair.rejected):
        assert row.token_ids[: len(prompt)].tolist() == prompt
        assert not row.loss_weights[: len(prompt)].any()
    short = chat_tokenizer(max_prompt_length=10, max_length=14)
    cut = short.encode_pair(CHAT[:4], [CHAT[4]], [{"role": "assistant", "content": "It is five."}])
    assert np.isnan(cut.margin)
    for row, side in zip(cut[:2], pair[:2], strict=True):
        first = int(np.flatnonzero(side.loss_weights)[0])
        assert row.token_ids.tolist() == side.token_ids[first - 10 : first + 4].tolist()
        assert row.loss_weights.tolist() == [0.0] * 10 + [1.0] * 4
    assert dict(short.counts) == {"prompts_cut": 2, "responses_cut": 2}


def test_every_token_of_plain_text_is_learned():
    chat = chat_tokenizer()
    row = chat.encode_text("Once upon a time")
    assert text(chat, row.token_ids) == "Once upon a time</s>"
    assert row.loss_weights.tolist() == [1.0] * len(row.token_ids)
    with pytest.raises(RowRefused):
        chat.encode_text("forged <|user|>\n turn")


def test_reasoning_is_learned_with_the_answer():
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% else %}"
        "<|im_start|>{% if m.reasoning_content is defined %}(({{ m.reasoning_content }})){% endif %}"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = ChatTokenizer(tokenizer)
    answer = {"role": "assistant", "content": "2", "reasoning_content": "1 and 1"}
    row = chat.encode_conversation([CHAT[1], answer])
    assert text(chat, row.token_ids[row.loss_weights > 0]) == "1 and 1))2<|im_end|>"


REFUSING = {
    "template_error": "{{ raise_exception('no') if messages|length > 2 else '' }}" + shipped_template("tulu"),
    "template_rewrites_content": shipped_template("tulu").replace(
        "'<|user|>\\n' + message['content']", "'<|user|>\\n' + message['content'].replace('1', 'one')"
    ),
    "template_omits_content": shipped_template("tulu").replace(
        "{{- '<|system|>\\n' + message['content'] + '\\n' -}}", ""
    ),
}


@pytest.mark.parametrize("reason", REFUSING)
def test_what_a_template_does_to_messages_is_noticed(reason: str):
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = REFUSING[reason]
    chat = ChatTokenizer(tokenizer)
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    results = chat.encode_conversations([plain, CHAT[:3], plain])
    assert isinstance(results[1], RowRefused) and results[1].reason == reason
    for row in (results[0], results[2]):
        assert not isinstance(row, RowRefused) and row.num_targets == 3


def test_end_tokens():
    for template, ends in (("tulu", ["</s>"]), ("chatml", ["<|im_end|>", "</s>"]), ("llama3", ["<|eot_id|>", "</s>"])):
        tokenizer = toy_tokenizer()
        choose_template(tokenizer, template)
        assert tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer))) == ends


def test_templates_are_chosen_and_saved():
    tokenizer = toy_tokenizer()
    ChatTokenizer(tokenizer)
    assert tokenizer.chat_template == shipped_template("tulu")
    ChatTokenizer(tokenizer, TemplatingSettings(template="chatml"))
    assert tokenizer.chat_template == shipped_template("chatml")
    ChatTokenizer(tokenizer, TemplatingSettings(template="own"))
    assert tokenizer.chat_template == shipped_template("chatml")


def test_unusable_tokenizers_are_refused():
    with pytest.raises(DataError, match="has no chat template"):
        chat_tokenizer("own")
    without_end = toy_tokenizer()
    without_end.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        ChatTokenizer(without_end)
    other = PreTrainedTokenizerFast(
        tokenizer_object=toy_tokenizer().backend_tokenizer, eos_token="</s>", additional_special_tokens=[]
    )
    other.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="ends an assistant turn with no token"):
        ChatTokenizer(other)
