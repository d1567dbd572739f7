"""Conversations to the text of prompts, for one model; nobody's words become control tokens there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelLoadError
from server.markup.formats import ToolForm, ToolsSetting
from server.markup.reasoning import END_THINK, THINK
from server.markup.tool_prompt import tools_text
from server.prompt.chat_template import ChatTemplate
from server.prompt.control_tokens import ControlTokens, looks_like_control, strings_of, unused_break
from server.prompt.conversation import (
    Message,
    TemplateForm,
    check_shown,
    cut_at_end,
    fit,
    mark_end,
    with_parsed_calls,
    with_system_text,
)
from server.prompt.model_files import ChatFiles
from server.prompt.template_probe import probe
from server.protocol.errors import ApiError, bad_request, shorten

THINKING_SWITCHES = frozenset({"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "clear_thinking"})
"""By these variables templates turn reasoning on and off, or bound it. Where there is none they are taken as well."""
_RESERVED_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """A rendered conversation; `mark` breaks control tokens of users, None where there were none."""

    text: str
    mark: str | None

    @property
    def plain(self) -> str:
        """The text without the marks."""
        return self.text if self.mark is None else self.text.replace(self.mark, "")


class PromptWriter:
    """The chat template of one model, and what it is given. Safe to call from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, files: ChatFiles, *, tools: ToolsSetting | None = None) -> None:
        """`tools` overrides what the template says of tool calls. Raises `ModelLoadError` where it is broken."""
        self._tokenizer = tokenizer
        self.special_tokens = dict(files.special_tokens)
        """`bos_token`, `eos_token` and the like, as templates see them."""
        self._templates = {name: _compile(name, source) for name, source in files.templates.items()}
        self._set_up_control_tokens()
        self._forms = {name: self._probe(name) for name in self._templates}
        tool_template = self._forms.get("tool_use") or self._forms.get("default")
        self.tool_form = ToolForm() if tool_template is None else tool_template.tool_form(tools)
        """How this model is told of tools and calls them."""
        self.reasons = tokenizer.token_to_id(END_THINK) is not None or any(
            mark in template.source for template in self._templates.values() for mark in (THINK, END_THINK)
        )
        """Whether the model knows a block of reasoning, by its tokens or its template."""

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered at all."""
        return bool(self._templates)

    @property
    def variables(self) -> frozenset[str]:
        """Variables that the chat template reads."""
        return frozenset().union(*(template.variables for template in self._templates.values()))

    def named_roles(self, *, tools: bool) -> frozenset[str]:
        """Roles of which the chat template shows a message's `name`."""
        form = self._forms.get("tool_use" if tools and "tool_use" in self._forms else "default")
        return frozenset() if form is None else form.named_roles

    def write(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_prompt: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> WrittenPrompt:
        """The prompt of a conversation.

        `messages` are plain dicts as in the API. With `continue_final_message` the prompt ends where the last
        message's text ends. Tools are described by the template, with `tool_prompt` in front of the system text, or
        behind the system text, where `tool_prompt` introduces them. `kwargs` are further template variables. Raises
        `ApiError` 400 for what the template refuses or does not show, and for variables it does not read.
        """
        template, form = self._chosen(tools)
        kwargs = self._read_variables(template, kwargs or {})
        messages = with_parsed_calls(messages, form)
        outside = [messages, tools, tool_prompt, dict(kwargs)]
        self._check_normalized(outside)
        mark = unused_break(outside) if self.control.occur_in(outside) else None
        if mark is not None:
            messages = [self._broken_turn(message, mark) for message in messages]
            tools = self.control.broken(tools, mark)
            tool_prompt = self.control.broken(tool_prompt, mark)
            kwargs = self.control.broken(dict(kwargs), mark)
        messages, tools = self._with_tools(messages, tools, tool_prompt)
        turns = fit(messages, form, self.tool_form.calls)
        end = mark_end(turns, outside, mark) if continue_final_message else None
        opens = add_generation_prompt and not continue_final_message
        text = template.render(self._variables(turns, opens, tools, kwargs))
        if end is not None:
            text = cut_at_end(text, end)
        check_shown(messages, text)
        return WrittenPrompt(text, mark)

    def _chosen(self, tools: list[dict[str, Any]] | None) -> tuple[ChatTemplate, TemplateForm]:
        """The template to use, and what it wants. Raises `ApiError` 400 where there is none."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise bad_request("This model has no chat template, so it cannot hold a conversation", param="messages")
        return self._templates[name], self._forms[name]

    def _with_tools(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, tool_prompt: str | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The messages with what is said of tools, and the tools that are left for the template to describe."""
        if tools and not self.tool_form.by_template:
            text = tools_text(self.tool_form.calls, tools, tool_prompt)
            return with_system_text(messages, text, in_front=False), None
        if tools and tool_prompt:
            return with_system_text(messages, tool_prompt, in_front=True), tools
        return messages, tools

    def _set_up_control_tokens(self) -> None:
        literals = "\0".join(template.literals for template in self._templates.values())
        inspected = "\0".join(text for template in self._templates.values() for text in template.inspected)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        plain = {token.content for token in added if not token.special}
        named = {content for content in plain if content in literals or looks_like_control(content)}
        self.control = ControlTokens(special | named)
        """What text from outside must not become."""
        # A template that looks for `</think>` in an assistant's turn must find it.
        self._assistant_control = ControlTokens(special | {token for token in named if token not in inspected})
        normalized = [token.content for token in added if token.normalized and token.content in self.control.tokens]
        # Matched after normalization, so other spellings can become these tokens.
        self._normalized_control = ControlTokens(normalized) if normalized and self._tokenizer.normalizer else None

    def _probe(self, name: str) -> TemplateForm:
        template = self._templates[name]

        def render(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
            return template.render(self._variables(messages, True, tools, {}))

        try:
            return probe(render, template.source)
        except ApiError as error:
            raise ModelLoadError(
                f"the chat template '{name}' cannot show one question: {error.message}",
                hint="mend chat_template.jinja, or remove it",
            ) from None

    def _variables(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            **self.special_tokens,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def _broken_turn(self, message: Message, mark: str) -> Message:
        control = self._assistant_control if message["role"] == "assistant" else self.control
        broken: Message = control.broken(message, mark)
        return broken

    def _read_variables(self, template: ChatTemplate, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those that the template reads. Raises `ApiError` 400 for others, but for switches of reasoning."""
        for name in kwargs.keys() - THINKING_SWITCHES:
            if name in _RESERVED_VARIABLES or name in self.special_tokens or name not in template.variables:
                raise bad_request(
                    f"chat_template_kwargs: this model's chat template has no variable {shorten(name)} to set",
                    param="chat_template_kwargs",
                )
        return {name: value for name, value in kwargs.items() if name in template.variables}

    def _check_normalized(self, outside: list[Any]) -> None:
        if self._normalized_control is None:
            return
        for text in strings_of(outside):
            normal = self._tokenizer.normalizer.normalize_str(text)
            if normal != text and self._normalized_control.occur_in(normal):
                raise bad_request(
                    "messages hold text that this model's tokenizer would read as a control token", param="messages"
                )


def _compile(name: str, source: str) -> ChatTemplate:
    try:
        return ChatTemplate(source)
    except Exception as error:  # a hostile source can make the compiler fail in any way
        raise ModelLoadError(f"the chat template '{name}' is broken: {error}") from None
