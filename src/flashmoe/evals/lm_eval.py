"""A model as lm-evaluation-harness takes it (the extra `lm-eval`), in this process.

    with flashmoe.load("demo-q4", parallel=8) as model:
        lm_eval.simple_evaluate(model=HarnessModel(model), tasks=["arc_easy"])

Log-likelihoods of all requests pass a layer before the next one is read; answers are generated
`parallel` at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from flashmoe.errors import UsageError
from flashmoe.evals.continuations import score_continuations
from flashmoe.evals.perplexity import Progress
from flashmoe.generate.request import Event, Failed, Generated, GenerationRequest
from flashmoe.generate.sampling import SamplingOptions

if TYPE_CHECKING:
    from flashmoe.api import Model

_log = logging.getLogger(__name__)
_DEFAULT_TOKENS = 256
# Of a task's generation_kwargs; those of beams and caches mean nothing here.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")

Ids = list[int]


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """lm_eval.api.model.LM over a loaded model, which stays the caller's to close.

    progress: called with a text now and then. What is longer than the model's context loses its
    beginning, with a warning in the log.
    """

    def __init__(self, model: Model, progress: Progress = lambda text: None) -> None:
        super().__init__()
        self.model, self._progress = model, progress

    # What the harness asks about a model.

    @property
    def eot_token_id(self) -> int:
        """The token before an empty context: the smallest that ends an answer."""
        return min(self.model.stop_ids)

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self.model.context_length

    @property
    def tokenizer_name(self) -> str:
        """For caches of rendered requests."""
        return str(self.model.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **other: Any) -> Ids:
        """Ids of a text; nothing is added around it, control tokens in it are recognised."""
        return [int(id) for id in self.model.tokenizer.encode(string)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What tells templates apart, for the harness's caches."""
        return str(self.model.path) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt text of a chat."""
        return self.model.chat_template.render(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    # What it asks of it.

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], **other: Any
    ) -> list[tuple[float, bool]]:
        fitting = [self._fitting(context, text) for _, context, text in requests]
        scores = score_continuations(self.model, fitting, self._progress)
        results = [(score.logprob, score.greedy) for score in scores]
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, in windows as long as the context."""
        windows = [list(self._rolled(*request.args)) for request in requests]
        flat = [(None, *window) for text in windows for window in text]
        scores = iter(self._loglikelihood_tokens(flat))
        totals = [sum(next(scores)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to (context, generation_kwargs), in the order of the requests."""
        answers = self._answers([self._generation(*request.args) for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _fitting(self, context: Ids, text: Ids) -> tuple[Ids, Ids]:
        """The same, without its beginning where it is too long."""
        if len(text) >= self.max_length:
            raise UsageError(
                "a continuation fills the context",
                where="loglikelihood",
                expected=f"fewer than {self.max_length} tokens",
                got=len(text),
            )
        return self._cut(context, self.max_length - len(text)), text

    def _cut(self, ids: Ids, room: int) -> Ids:
        if len(ids) > room:
            _log.warning("a context of %d tokens is cut to its last %d", len(ids), room)
        return ids[-room:]

    def _rolled(self, text: str) -> Iterator[tuple[Ids, Ids]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length - 1,
            context_len=1,
        )
        yield from map(make_disjoint_window, windows)

    def _generation(self, context: str, given: Mapping[str, Any]) -> GenerationRequest:
        sampling = sampling_of(given)
        room = max(1, self.max_length - sampling.max_tokens)
        ids = self._cut(self.tok_encode(context) or [self.prefix_token_id], room)
        return GenerationRequest(tuple(ids), sampling, stop_ids=self.model.stop_ids)

    def _answers(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Texts of the answers, `parallel` of them at a time."""
        texts: list[list[str]] = [[] for _ in requests]
        scheduler = self.model.scheduler()
        left = list(enumerate(requests))[::-1]
        try:
            while left or scheduler.running:
                while left and not scheduler.full:
                    number, request = left.pop()
                    scheduler.check(request)
                    scheduler.start(request, _collector(texts[number]))
                scheduler.step()
                self._progress(f"answers: {len(requests) - len(left)} of {len(requests)} begun")
        finally:
            scheduler.close()
        return ["".join(parts) for parts in texts]


def run_tasks(
    harness: HarnessModel,
    names: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    include: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The harness's results: figures by task, as `acc,none`.

    limit: documents of each task at most. shots: examples before each question; None: the task's.
    chat: questions go through the chat template. include: a folder of further tasks. Raises
    UsageError for a task that the harness does not know.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UsageError("unknown task", where="lm-eval", got=", ".join(unknown))
    found = simple_evaluate(
        model=harness,
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        num_fewshot=shots,
        apply_chat_template=chat,
    )
    return dict(found["results"])


def sampling_of(given: Mapping[str, Any]) -> SamplingOptions:
    """A task's generation_kwargs; greedy unless they say do_sample or a temperature above 0."""
    until = given.get("until") or []
    stop = [one for one in ([until] if isinstance(until, str) else until) if one]
    limit = next((given[name] for name in _LIMITS if name in given), _DEFAULT_TOKENS)
    chosen = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    if not given.get("do_sample", bool(chosen.get("temperature"))):
        chosen = {"temperature": 0.0}
    elif "temperature" not in chosen:
        chosen["temperature"] = 1.0
    return SamplingOptions(max_tokens=int(limit), stop=stop, **chosen)


def _collector(parts: list[str]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if isinstance(event, Generated):
            parts.append(event.token.text)
        elif isinstance(event, Failed):
            raise event.error

    return on_event
