"""/tokenize, /detokenize and /apply-template, in llama.cpp's shapes."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.server.messages import chat_messages, chat_tools
from flashmoe.server.requests.openai import TemplateBody, TextBody, TokensBody
from flashmoe.server.sampling import template_variables, thinking_of
from flashmoe.server.served import Served
from flashmoe.server.service import body_of, service_of
from flashmoe.server.task import Asked, ChatTask
from flashmoe.server.wire import Json


async def tokenize(request: Request) -> Response:
    """Token ids of a text; control tokens are recognised unless parse_special is false."""
    served, body = service_of(request).model(), await body_of(request, TextBody)
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise RequestError("content: the text is missing", param="content")
    encode = served.tokenizer.encode_plain if body.parse_special is False else None
    ids = await asyncio.to_thread(encode or served.tokenizer.encode, text)
    return Json({"tokens": _pieces(served, ids) if body.with_pieces else ids, "count": len(ids)})


def _pieces(served: Served, ids: list[int]) -> list[dict[str, Any]]:
    return [{"id": id, "piece": served.tokenizer.decode([id], skip_special=False)} for id in ids]


async def detokenize(request: Request) -> Response:
    """Text of token ids, control tokens as they are written."""
    served, body = service_of(request).model(), await body_of(request, TokensBody)
    if max(body.tokens, default=0) >= served.vocab_size:
        raise RequestError(f"tokens: ids are below {served.vocab_size}", param="tokens")
    text = await asyncio.to_thread(served.tokenizer.decode, body.tokens, skip_special=False)
    return Json({"content": text})


async def apply_template(request: Request) -> Response:
    """The prompt of a chat, as text with its control tokens, and its ids."""
    service, body = service_of(request), await body_of(request, TemplateBody)
    served, limits = service.model(), service.settings.limits
    task = ChatTask(
        messages=chat_messages(body.messages, limits),
        asked=Asked(),
        tools=chat_tools(body.tools, None, None, limits),
        thinking=thinking_of(body),
        continue_final=bool(body.continue_final_message),
        variables=template_variables(body),
    )
    prompt = await asyncio.to_thread(served.prompt, task)
    text = await asyncio.to_thread(served.tokenizer.decode, prompt.ids, skip_special=False)
    return Json({"prompt": text, "tokens": prompt.ids, "count": len(prompt.ids)})
