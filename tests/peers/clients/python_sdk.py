"""The official Python SDK, 2.x: opens modern (`server/discover`), or with `initialize` in its legacy mode."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import mcp_types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPDeprecationWarning

Mode = Literal["auto", "legacy", "2026-07-28"]


async def walk(url: str, key: str, tour: str, mode: Mode) -> dict[str, Any]:
    """One tour in one session."""
    logs: list[Any] = []

    async def heard(params: Any) -> None:
        logs.append(params.data)

    warnings.simplefilter("ignore", MCPDeprecationWarning)
    async with create_mcp_http_client(headers={"Authorization": f"Bearer {key}"}) as http:
        client = Client(
            streamable_http_client(url, http_client=http),
            mode=mode,
            sampling_callback=sampled,
            elicitation_callback=elicited,
            list_roots_callback=rooted,
            logging_callback=heard,
        )
        async with client:
            seen: dict[str, Any] = await TOURS[tour](client)
            return seen | {"protocol": client.protocol_version} | ({"logs": logs} if tour == "conversation" else {})


async def sampled(_context: Any, params: Any) -> mcp_types.CreateMessageResult:
    text = mcp_types.TextContent(type="text", text=f"heard {params.messages[0].content.text!r}")
    return mcp_types.CreateMessageResult(role="assistant", content=text, model="made-up")


async def elicited(_context: Any, params: Any) -> mcp_types.ElicitResult:
    answers = {name: f"my {name}" for name in params.requested_schema["properties"]}
    return mcp_types.ElicitResult(action="accept", content=answers)


async def rooted(_context: Any) -> mcp_types.ListRootsResult:
    return mcp_types.ListRootsResult(roots=[mcp_types.Root(uri="file:///here")])


async def said(client: Client, name: str, arguments: dict[str, Any] | None = None) -> str:
    (content,) = (await client.call_tool(name, arguments)).content
    return str(content.text)


async def offers(client: Client) -> dict[str, Any]:
    progress: list[float] = []

    async def moved(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    await client.call_tool("test_tool_with_progress", progress_callback=moved)
    image = (await client.call_tool("test_image_content")).content[0]
    prompt = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
    reference = mcp_types.PromptReference(name="test_prompt_with_arguments")
    return {
        "tools": sorted(tool.name for tool in (await client.list_tools()).tools),
        "resources": sorted(str(resource.uri) for resource in (await client.list_resources()).resources),
        "prompts": sorted(prompt.name for prompt in (await client.list_prompts()).prompts),
        "echo": await said(client, "echo", {"text": "grüße\n\t✓"}),
        "failed": (await client.call_tool("test_error_handling")).is_error,
        "image": image.mime_type,
        "read": (await client.read_resource("test://static-text")).contents[0].text,
        "template": (await client.read_resource("test://template/7/data")).contents[0].text,
        "prompt": prompt.messages[0].content.text,
        "completion": (await client.complete(reference, {"name": "arg1", "value": "par"})).completion.values,
        "progress": progress,
    }


async def conversation(client: Client) -> dict[str, Any]:
    return {
        "sampled": await said(client, "test_sampling", {"prompt": "hello"}),
        "elicited": await said(client, "test_elicitation", {"message": "who?"}),
        "resumed": await said(client, "test_reconnection"),
    }


async def rounds(client: Client) -> dict[str, Any]:
    return {
        "elicited": await said(client, "test_input_required_result_elicitation"),
        "sampled": await said(client, "test_input_required_result_sampling"),
        "rooted": await said(client, "test_input_required_result_list_roots"),
        "twice": await said(client, "test_input_required_result_multi_round"),
    }


async def everything(client: Client) -> dict[str, Any]:
    progress: list[float] = []

    async def moved(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    steps = {"duration": 0.3, "steps": 3}
    await client.call_tool("trigger-long-running-operation", steps, progress_callback=moved)
    prompt = await client.get_prompt("args-prompt", {"city": "Ulm"})
    resource = await client.read_resource("demo://resource/static/document/features.md")
    return {
        "echo": await said(client, "echo", {"message": "hi"}),
        "sum": await said(client, "get-sum", {"a": 2, "b": 3}),
        "prompt": prompt.messages[0].content.text,
        "read": len(resource.contents[0].text) > 0,
        "progress": progress,
    }


TOURS = {"offers": offers, "conversation": conversation, "rounds": rounds, "everything": everything}
