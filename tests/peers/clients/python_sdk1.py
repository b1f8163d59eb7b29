"""The official Python SDK, 1.30, run in its own environment: `python_sdk1.py URL KEY TOUR` prints what it saw."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import mcp.types
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from pydantic import AnyUrl


async def walk(url: str, key: str, tour: str) -> dict[str, Any]:
    logs: list[Any] = []

    async def heard(params: Any) -> None:
        logs.append(params.data)

    headers = {"Authorization": f"Bearer {key}"}
    async with (
        streamablehttp_client(url, headers=headers) as (reading, writing, _session_id),
        ClientSession(
            reading, writing, sampling_callback=sampled, elicitation_callback=elicited, logging_callback=heard
        ) as session,
    ):
        opened = await session.initialize()
        seen: dict[str, Any] = await TOURS[tour](session)
        return seen | {"protocol": opened.protocolVersion} | ({"logs": logs} if tour == "conversation" else {})


async def sampled(_context: Any, params: Any) -> mcp.types.CreateMessageResult:
    text = mcp.types.TextContent(type="text", text=f"heard {params.messages[0].content.text!r}")
    return mcp.types.CreateMessageResult(role="assistant", content=text, model="made-up")


async def elicited(_context: Any, params: Any) -> mcp.types.ElicitResult:
    answers = {name: f"my {name}" for name in params.requestedSchema["properties"]}
    return mcp.types.ElicitResult(action="accept", content=answers)


async def said(session: ClientSession, name: str, arguments: dict[str, Any] | None = None) -> str:
    (content,) = (await session.call_tool(name, arguments)).content
    return str(content.text)


async def read(session: ClientSession, uri: str) -> str:
    return str((await session.read_resource(AnyUrl(uri))).contents[0].text)


async def offers(session: ClientSession) -> dict[str, Any]:
    progress: list[float] = []

    async def moved(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    await session.call_tool("test_tool_with_progress", progress_callback=moved)
    image = (await session.call_tool("test_image_content")).content[0]
    prompt = await session.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
    reference = mcp.types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
    return {
        "tools": sorted(tool.name for tool in (await session.list_tools()).tools),
        "resources": sorted(str(resource.uri) for resource in (await session.list_resources()).resources),
        "prompts": sorted(prompt.name for prompt in (await session.list_prompts()).prompts),
        "echo": await said(session, "echo", {"text": "grüße\n\t✓"}),
        "failed": (await session.call_tool("test_error_handling")).isError,
        "image": image.mimeType,
        "read": await read(session, "test://static-text"),
        "template": await read(session, "test://template/7/data"),
        "prompt": prompt.messages[0].content.text,
        "completion": (await session.complete(reference, {"name": "arg1", "value": "par"})).completion.values,
        "progress": progress,
    }


async def conversation(session: ClientSession) -> dict[str, Any]:
    return {
        "sampled": await said(session, "test_sampling", {"prompt": "hello"}),
        "elicited": await said(session, "test_elicitation", {"message": "who?"}),
        "resumed": await said(session, "test_reconnection"),
    }


async def everything(session: ClientSession) -> dict[str, Any]:
    progress: list[float] = []

    async def moved(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    steps = {"duration": 0.3, "steps": 3}
    await session.call_tool("trigger-long-running-operation", steps, progress_callback=moved)
    prompt = await session.get_prompt("args-prompt", {"city": "Ulm"})
    return {
        "echo": await said(session, "echo", {"message": "hi"}),
        "sum": await said(session, "get-sum", {"a": 2, "b": 3}),
        "prompt": prompt.messages[0].content.text,
        "read": len(await read(session, "demo://resource/static/document/features.md")) > 0,
        "progress": progress,
    }


TOURS = {"offers": offers, "conversation": conversation, "everything": everything}

if __name__ == "__main__":
    json.dump(asyncio.run(walk(*sys.argv[1:])), sys.stdout)
