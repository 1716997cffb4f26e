"""Ratings of every response on every aspect, each asked for once however often the rating is killed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rlsys.data.judge import Rater, RatingRequest, Reply
from rlsys.data.preference_records import PreferencePrompt, RatedResponse, Rating, Response
from rlsys.data.response_store import ResponseStore
from rlsys.recipe.preferences import AspectName


async def rate_responses(
    judge: Rater,
    prompts: Sequence[PreferencePrompt],
    responses: Mapping[str, Sequence[Response]],
    store: ResponseStore,
    *,
    aspects: Sequence[AspectName],
) -> tuple[list[tuple[PreferencePrompt, list[RatedResponse]]], Counter[str]]:
    """Has the judge rate what it has not rated yet. Every reply is stored, unreadable ones too; failures are not.

    Args:
        judge: asked once for equal responses to a prompt.
        prompts: in the order of the result.
        responses: by prompt id.
        store: keys are (prompt id, digest of the response, judge, aspect, ask).
        aspects: on which to rate.

    Returns:
        Each prompt with its rated responses, and counts: replies of now by status, and `kept` from before.
    """
    settled: dict[tuple[str | int, ...], Rating] = {}
    counts: Counter[str] = Counter(rated=0, not_applicable=0, malformed=0, failed=0, kept=0)
    open_requests: dict[tuple[str | int, ...], RatingRequest] = {}
    for prompt in prompts:
        for request in _requests(prompt, responses.get(prompt.id, ()), aspects):
            identity = _identity(request)
            if identity in settled or identity in open_requests:
                continue
            rating = stored_rating(store, judge, request)
            if rating.status == "failed":
                open_requests[identity] = _asked(request, rating.num_asked)
            else:
                settled[identity] = rating
                counts["kept"] += 1
    async for reply in judge.rate(open_requests.values()):
        counts[reply.status] += 1
        if reply.status != "failed":
            store.append(reply.key, _to_json(reply))
    for identity, request in open_requests.items():
        settled[identity] = stored_rating(store, judge, request)
    rated = [
        (
            prompt,
            [
                RatedResponse(
                    response,
                    {
                        request.aspect: settled[_identity(request)]
                        for request in _requests(prompt, (response,), aspects)
                    },
                )
                for response in responses.get(prompt.id, ())
            ],
        )
        for prompt in prompts
    ]
    return rated, counts


def stored_rating(store: ResponseStore, judge: Rater, request: RatingRequest) -> Rating:
    """What the stored replies to a request come to; `failed` where the judge is still to be asked."""
    num_asked = 0
    for ask in range(judge.max_asks):
        key = (request.prompt_id, request.digest, judge.name, request.aspect, ask)
        if key not in store:
            return Rating("failed", num_asked=num_asked)
        value = store[key]
        num_asked += 1
        if value["status"] != "malformed":
            return Rating(value["status"], value["value"], num_asked)
    return Rating("malformed", num_asked=num_asked)


def _requests(
    prompt: PreferencePrompt, responses: Iterable[Response], aspects: Sequence[AspectName]
) -> Iterable[RatingRequest]:
    for response in responses:
        for aspect in aspects:
            yield RatingRequest(prompt.id, prompt.messages, response.text, aspect)


def _identity(request: RatingRequest) -> tuple[str | int, ...]:
    return (request.prompt_id, request.digest, request.aspect)


def _asked(request: RatingRequest, num_asked: int) -> RatingRequest:
    return RatingRequest(request.prompt_id, request.messages, request.response, request.aspect, num_asked)


def _to_json(reply: Reply) -> dict[str, object]:
    return {
        "status": reply.status,
        "value": reply.value,
        "text": reply.text,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }
