"""What of a conversation a model makes no use of: taken all the same, and named in the answer's header."""

from server.prompt.plan_tools import EFFORT_VARIABLE
from server.prompt.prompt_writer import THINKING_SWITCHES
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.prompts import Conversation
from server.protocol.request import ChatCompletionRequest


def unused_fields(request: Conversation, tokenizer: ChatTokenizer, *, tools: bool) -> tuple[str, ...]:
    """JSON pointers of the names, switches and efforts that the chat template does not read, and of encrypted thoughts.

    `tools`: the model is told of some. The name of a `tool` turn only repeats which call is answered.
    """
    roles = tokenizer.prompts.named_roles(tools=tools) | {"tool", "function"}
    unused = [
        f"/messages/{index}/name"
        for index, message in enumerate(request.messages)
        if message.name is not None and message.role not in roles
    ]
    unused += [f"/messages/{index}/is_error" for index, message in enumerate(request.messages) if message.is_error]
    unused += [
        f"/messages/{index}/content/{place}"
        for index, message in enumerate(request.messages)
        for place, part in enumerate(message.content if isinstance(message.content, list) else ())
        if part.is_thought and not part.words
    ]
    for name in request.chat_template_kwargs or ():
        if name in THINKING_SWITCHES and name not in tokenizer.prompts.variables:
            unused.append(f"/chat_template_kwargs/{name}")
    if isinstance(request, ChatCompletionRequest) and not tokenizer.prompts.reasons:
        effort = request.reasoning_effort
        if effort not in (None, "none") and EFFORT_VARIABLE not in tokenizer.prompts.variables:
            unused.append("/reasoning_effort")
    return tuple(unused)
