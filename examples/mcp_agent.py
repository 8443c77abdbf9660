"""An agent that searches through `xqg-vdb mcp`: it lists the tools, searches, and answers from what was found.

pip install 'xqg-vdb[starter,mcp]'; then `python examples/mcp_agent.py 'Mto Nile una urefu gani?' --path xqg-data`.
Without a language model it follows a script: one search, the passages as its answer. With OPENAI_BASE_URL (any
OpenAI-compatible endpoint), OPENAI_MODEL and, where needed, OPENAI_API_KEY, the model decides which tools to call.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import httpx
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

MOST_STEPS = 5


def scripted(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model would say: first "search for this", then the passages."""
    if messages[-1]["role"] == "user":
        arguments = {"question": messages[-1]["content"], "k": 3, "collection": "demo"}
        call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": json.dumps(arguments)}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    try:
        hits = json.loads(messages[-1]["content"])["hits"]
    except ValueError:  # the tool's error
        return {"role": "assistant", "content": messages[-1]["content"]}
    return {"role": "assistant", "content": "\n".join(f"[{hit['title']}] {hit['text']}" for hit in hits)}


def endpoint(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The next message of a model behind an OpenAI-compatible endpoint."""
    key = os.environ.get("OPENAI_API_KEY")
    answer = httpx.post(
        os.environ["OPENAI_BASE_URL"].rstrip("/") + "/chat/completions",
        json={"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": tools},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=120,
    )
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("--path", default="xqg-data")
    asked = parser.parse_args()
    say = endpoint if "OPENAI_BASE_URL" in os.environ else scripted
    # `xqg-vdb mcp --path …`, by this very Python
    argv = ["-c", "from xqg_vdb.cli import main; main()", "mcp", "--path", asked.path]
    server = StdioServerParameters(command=sys.executable, args=argv, env=dict(os.environ))
    async with Client(stdio_client(server)) as client:
        listed = (await client.list_tools()).tools
        print("tools:", ", ".join(tool.name for tool in listed))
        tools = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
            }
            for tool in listed
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked.question}]
        for _ in range(MOST_STEPS):
            messages.append(await asyncio.to_thread(say, messages, tools))
            calls = messages[-1].get("tool_calls") or []
            for call in calls:
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                print(f"calls {name}({json.dumps(arguments, ensure_ascii=False)})")
                result = await client.call_tool(name, arguments)
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result.content[0].text})
            if not calls:
                break
        print(messages[-1]["content"])


if __name__ == "__main__":
    asyncio.run(main())
