"""Run under a Python that has langchain-openai or litellm: stream, and print what the library has put together.

    python python_clients.py langchain|litellm < REQUESTS

REQUESTS is a JSON array of `{"url", "body"}`; the output one of messages, or of `{"error"}`. Nothing of the house is
imported, for that Python need not have it.
"""

import json
import os
import sys
import warnings

warnings.simplefilter("ignore")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


def langchain(url, body):
    from langchain_openai import ChatOpenAI

    messages = body.pop("messages")
    model = ChatOpenAI(base_url=url, api_key="none", model="fake", max_retries=0, stream_usage=True)
    whole = None
    for chunk in model.stream(messages, **body):
        whole = chunk if whole is None else whole + chunk
    calls = [(call["name"], call["args"], call["id"]) for call in whole.tool_call_chunks]
    logprobs = (whole.response_metadata.get("logprobs") or {}).get("content")
    return {
        "content": whole.content,
        "calls": calls,
        "finish": [whole.response_metadata["finish_reason"]],
        "tokens": whole.usage_metadata["output_tokens"],
        "spelt": None if logprobs is None else "".join(entry["token"] for entry in logprobs),
        "role": {"ai": "assistant", "AIMessageChunk": "assistant"}[whole.type],
    }


def litellm(url, body):
    import litellm

    litellm.suppress_debug_info = True
    chunks = list(
        litellm.completion(
            model="openai/fake", api_base=url, api_key="none", max_retries=0, num_retries=0, stream=True,
            stream_options={"include_usage": True}, **body,
        )
    )  # fmt: skip
    whole = litellm.stream_chunk_builder(chunks, messages=body["messages"])
    message = whole.choices[0].message
    return {
        "content": message.content,
        "reasoning": getattr(message, "reasoning_content", None),
        "calls": [(call.function.name, call.function.arguments, call.id) for call in message.tool_calls or ()],
        "finish": [whole.choices[0].finish_reason],
        "tokens": whole.usage.completion_tokens,
        "role": message.role,
        "sent back": message.model_dump(),
    }


def main():
    run = {"langchain": langchain, "litellm": litellm}[sys.argv[1]]
    results = []
    for request in json.load(sys.stdin):
        try:
            results.append(run(request["url"], request["body"]))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
