"""Vectors by the providers that litellm speaks to: Cohere, Voyage, Gemini, Bedrock, Ollama and others."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from rowvec.embedders.plugin import Purpose, Reply, TextModel
from rowvec.embedders.provider.endpoint import header_value, web_address
from rowvec.embedders.provider.refusal import Refusal, shown
from rowvec.errors import EmbedderUnavailable, RowError, UsageError
from rowvec.pipeline.embedders import LitellmEmbedder

R = TypeVar("R")

# By default these providers cut a text that is too long, without a word. A row should be rejected instead.
_NEVER_CUT: Mapping[str, dict[str, Any]] = {
    "cohere": {"truncate": "NONE"},
    "ollama": {"truncate": False},
    "voyage": {"truncation": False},
}
# Providers whose models are told what a text is, and the words for it.
_INPUT_TYPES: Mapping[str, dict[Purpose, str]] = {
    "cohere": {"document": "search_document", "query": "search_query"},
    "voyage": {"document": "document", "query": "query"},
}


class LitellmModel(TextModel):
    """One model behind ``litellm.embedding``. Retries, pace, packing and budget are ours; litellm's own are off."""

    def __init__(self, config: LitellmEmbedder) -> None:
        """Raises ``UsageError`` if litellm is not installed, or if no request could succeed. Does not import it."""
        super().__init__(config)
        if find_spec("litellm") is None:
            raise UsageError("embedder.kind is litellm, which is not installed; pip install 'rowvec[litellm]'")
        self._provider = config.model.partition("/")[0]
        self._key = None if config.api_key is None else header_value(config.api_key)
        self._url = None if config.base_url is None else web_address(config.base_url, "write https://HOST/PATH")
        # A model with one length may refuse the field, and so may litellm, if it knows the model.
        self._sends_dimensions = _facts(config.model).get("output_vector_size") != config.dimensions

    @property
    def account(self) -> str:
        """See ``TextModel``."""
        return self._url or self._provider

    def usd_per_million_tokens(self) -> float | None:
        """See ``TextModel``; from litellm's own list."""
        price = _facts(self.config.model).get("input_cost_per_token")
        return price * 1e6 if isinstance(price, float | int) else None

    def embed(self, texts: list[str], purpose: Purpose) -> Reply | Refusal:
        """See ``TextModel``."""
        answered = self._ask(texts, purpose)
        if isinstance(answered, Refusal) and self._sends_dimensions and answered.about_dimensions:
            self._sends_dimensions = False
            answered = self._ask(texts, purpose)
        if isinstance(answered, RowError):
            raise answered
        return answered

    def _ask(self, texts: list[str], purpose: Purpose) -> Reply | Refusal | RowError:
        """One request. Errors are returned, so that no traceback leads to litellm's, which may quote the key."""
        litellm, seconds = _library(), self.config.timeout_seconds
        settings = self._settings(purpose)

        def call() -> Any:
            return litellm.embedding(
                model=self.config.model,
                input=texts,
                api_base=self._url,
                api_key=self._key,
                timeout=seconds,
                max_retries=0,
                num_retries=0,
                **settings,
            )

        try:
            answer = _within(seconds, call)
        except TimeoutError:
            return Refusal(None, "", "", "", f"no whole answer within {seconds:g} s", {}, unanswered=True)
        except litellm.UnsupportedParamsError as error:
            if "dimensions" in settings:
                self._sends_dimensions = False
                return self._ask(texts, purpose)
            # litellm's own answer, about a field of ``extra``: no text is to blame.
            return Refusal(400, "", "", "model", self._shown(error), {})
        except litellm.ContextWindowExceededError as error:
            return RowError("too_long", self._shown(error))
        except litellm.ContentPolicyViolationError as error:
            return RowError("refused", self._shown(error))
        except Exception as error:  # noqa: BLE001 # litellm lets the errors of some of its providers through
            return self._refusal(error)
        return _reply(answer)

    def _settings(self, purpose: Purpose) -> dict[str, Any]:
        """The fields of a request, beside the texts and the account."""
        config = self.config
        fields = dict(_NEVER_CUT.get(self._provider, {}))
        if self._provider in _INPUT_TYPES:
            fields["input_type"] = _INPUT_TYPES[self._provider][purpose]
        if self._sends_dimensions:
            fields["dimensions"] = config.dimensions
        return fields | config.extra | (config.query_extra if purpose == "query" else {})

    def _refusal(self, error: Exception) -> Refusal:
        response = getattr(error, "response", None)
        headers: Any = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
        found = getattr(error, "status_code", None)
        status = int(found) if isinstance(found, int | str) and str(found).isdigit() else None
        # litellm has a number of its own for a connection that failed; no server has said it.
        unanswered = isinstance(error, (_library().Timeout, _library().APIConnectionError))
        if unanswered:
            status = None
        elif status is None:
            # No answer of a provider: litellm itself refuses the model or a setting.
            return Refusal(400, "", "", "model", self._shown(error), {})
        message = self._shown(error)
        # litellm passes OpenAI's code on in its sentence alone.
        code = "insufficient_quota" if "insufficient_quota" in message else ""
        return Refusal(status, code, type(error).__name__, "", message, dict(headers), unanswered=unanswered)

    def _shown(self, error: Exception) -> str:
        return shown(str(getattr(error, "message", "") or error), self._key or "")


@cache
def _library() -> Any:
    """litellm, imported when the first text is sent: that takes some seconds. It must load no list from the network."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Otherwise it would read a file .env of the current folder.
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    import litellm

    # Pydantic's remark on litellm's types, when the first request of a provider builds them.
    warnings.filterwarnings("ignore", r".* using the `ReadOnly` qualifier", UserWarning)
    # It reads a 0 in ``max_retries`` as "not given", for OpenAI's client, and takes this.
    loaded: Any = litellm
    loaded.DEFAULT_MAX_RETRIES = 0
    # It prints advertisements for its issue tracker to stdout, where ``--json`` promises one object.
    litellm.suppress_debug_info = True
    return litellm


@cache
def _facts(model: str) -> dict[str, Any]:
    """What litellm's list says about a model; empty if it does not have it. Read without importing litellm."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    try:
        written = (Path(spec.origin).parent / "model_prices_and_context_window_backup.json").read_text("utf-8")
    except FileNotFoundError:
        return {}
    known = cast("dict[str, dict[str, Any]]", json.loads(written))
    provider, _, name = model.partition("/")
    found = known.get(model) or known.get(name) or {}
    return found if str(found.get("litellm_provider", "")).startswith(provider) else {}


def _within(seconds: float, call: Callable[[], R]) -> R:
    """The result of ``call``. Raises ``TimeoutError`` if it takes longer, and what ``call`` raises.

    The time limits of the clients that litellm uses are those of one read each, so a server that sends a byte now and
    then would keep a request for ever. The thread that waits for it is left behind, and does not keep the process.
    """
    done: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # noqa: BLE001 # raised again by the thread that waits
            done.put((None, error))

    threading.Thread(target=work, name="litellm", daemon=True).start()
    result, error = _taken(done, seconds)
    if error is not None:
        raise error
    return cast("R", result)


def _taken(done: SimpleQueue[R], seconds: float) -> R:
    try:
        return done.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None


def _reply(answer: Any) -> Reply:
    """The vectors by their index; ``Requests`` checks them."""
    data = [one if isinstance(one, dict) else one.model_dump() for one in answer.data or []]
    rows = {one.get("index", i): one["embedding"] for i, one in enumerate(data)}
    if sorted(rows) != list(range(len(data))):
        raise EmbedderUnavailable("the embedder answered vectors that do not name each text once by its index")
    tokens = getattr(answer.usage, "prompt_tokens", None)
    return Reply(cast("Any", [rows[i] for i in range(len(data))]), tokens or None)
