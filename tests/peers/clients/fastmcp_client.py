"""The `fastmcp` client, modern by default."""

from __future__ import annotations

from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


async def walk(url: str, key: str, tour: str) -> dict[str, Any]:
    """One tour in one session."""
    transport = StreamableHttpTransport(url, headers={"Authorization": f"Bearer {key}"})
    async with Client(transport, elicitation_handler=elicited, sampling_handler=sampled) as client:
        return await TOURS[tour](client)


async def elicited(_message: str, _kind: Any, params: Any, _context: Any) -> dict[str, str]:
    return {name: f"my {name}" for name in params.requested_schema["properties"]}


async def sampled(messages: list[Any], _params: Any, _context: Any) -> str:
    return f"heard {messages[0].content.text!r}"


async def said(client: Client[Any], name: str, arguments: dict[str, Any] | None = None) -> str:
    (content,) = (await client.call_tool(name, arguments)).content
    return str(content.text)


async def offers(client: Client[Any]) -> dict[str, Any]:
    progress: list[float] = []

    async def moved(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    await client.call_tool("test_tool_with_progress", progress_handler=moved)
    image = (await client.call_tool("test_image_content")).content[0]
    prompt = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
    return {
        "tools": sorted(tool.name for tool in await client.list_tools()),
        "resources": sorted(str(resource.uri) for resource in await client.list_resources()),
        "prompts": sorted(prompt.name for prompt in await client.list_prompts()),
        "echo": await said(client, "echo", {"text": "grüße\n\t✓"}),
        "failed": (await client.call_tool("test_error_handling", raise_on_error=False)).is_error,
        "image": image.mime_type,
        "read": (await client.read_resource("test://static-text"))[0].text,
        "template": (await client.read_resource("test://template/7/data"))[0].text,
        "prompt": prompt.messages[0].content.text,
        "progress": progress,
    }


async def rounds(client: Client[Any]) -> dict[str, Any]:
    return {
        "elicited": await said(client, "test_input_required_result_elicitation"),
        "sampled": await said(client, "test_input_required_result_sampling"),
        "twice": await said(client, "test_input_required_result_multi_round"),
    }


async def everything(client: Client[Any]) -> dict[str, Any]:
    prompt = await client.get_prompt("args-prompt", {"city": "Ulm"})
    return {
        "echo": await said(client, "echo", {"message": "hi"}),
        "sum": await said(client, "get-sum", {"a": 2, "b": 3}),
        "prompt": prompt.messages[0].content.text,
    }


TOURS = {"offers": offers, "rounds": rounds, "everything": everything}
