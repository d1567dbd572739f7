"""Text to token ids and back, and conversations to prompts, for one model.

Built on the tokenizers library and Jinja alone: the API process imports neither torch nor transformers. Everything
here is safe to call from several threads at once.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelLoadError
from engine.messages import ImageInfo
from engine.token_text import TokenText
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
    text_parts,
    with_parsed_calls,
    with_system_text,
)
from server.prompt.model_files import ChatFiles, read_chat_files
from server.prompt.template_probe import probe
from server.prompt.token_bounds import TokenBounds
from server.protocol.errors import ApiError, bad_request, shorten

# Else the library starts threads for texts that come one by one.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
THINKING_SWITCHES = frozenset({"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "clear_thinking"})
"""By these variables templates turn reasoning on and off, or bound it. Where there is none they are taken as well."""
_RESERVED_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A rendered conversation; `mark` breaks control tokens of users, None where there were none."""

    text: str
    mark: str | None


class ChatTokenizer:
    """The tokenizer and chat template of one model; made by `load`."""

    def __init__(self, tokenizer: Tokenizer, files: ChatFiles, *, tools: ToolsSetting | None = None) -> None:
        """`tools` overrides what the template says of tool calls.

        Raises `ModelLoadError` where the template is broken or the tokenizer is of an unknown kind.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens = dict(files.special_tokens)
        """`bos_token`, `eos_token` and the like, as templates see them."""
        decoder = tokenizer.decoder
        self._token_text = TokenText(tokenizer, None if decoder is None else json.loads(decoder.__getstate__()))
        self.leading_spaces = self._token_text.leading_spaces
        self.token_bytes = self._token_text.token_bytes
        self.bounds = TokenBounds(tokenizer, self._token_text.token_bytes)
        """How many tokens a text has at the least."""
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        """Ids the tokenizer knows; the model's logits may be wider."""
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        """Ids that `skip_special_tokens` leaves out of texts."""
        self._templates = {name: _compile(name, source) for name, source in files.templates.items()}
        self._set_up_control_tokens()
        self._newline = self._encode("\n")
        self._adds_space = self._encode("\nx") != self._newline + self._encode("x")
        self._forms = {name: self._probe(name) for name in self._templates}
        tool_template = self._forms.get("tool_use") or self._forms.get("default")
        self.tool_form = ToolForm() if tool_template is None else tool_template.tool_form(tools)
        """How this model is told of tools and calls them."""
        self.reasons = tokenizer.token_to_id(END_THINK) is not None or any(
            mark in template.source for template in self._templates.values() for mark in (THINK, END_THINK)
        )
        """Whether the model knows a block of reasoning, by its tokens or its template."""

    @classmethod
    def load(cls, directory: Path, *, tools: ToolsSetting | None = None) -> "ChatTokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model's directory.

        Raises `ModelLoadError` where they are missing, broken, or not of a kind that is understood.
        """
        files = read_chat_files(directory)
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise ModelLoadError(f"tokenizer.json cannot be read: {error}") from None
        return cls(tokenizer, files, tools=tools)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Id of the end-of-sequence token that the tokenizer's configuration names."""
        token_id = self._tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))
        return frozenset() if token_id is None else frozenset({token_id})

    @property
    def variables(self) -> frozenset[str]:
        """Variables that the chat template reads."""
        return frozenset().union(*(template.variables for template in self._templates.values()))

    def named_roles(self, *, tools: bool) -> frozenset[str]:
        """Roles of which the chat template shows a message's `name`."""
        form = self._forms.get("tool_use" if tools and "tool_use" in self._forms else "default")
        return frozenset() if form is None else form.named_roles

    def special_marks(self, marks: Iterable[str]) -> dict[str, int]:
        """Those of the texts that are special tokens, which `skip_special_tokens` would leave out, with their ids."""
        ids = {mark: self._tokenizer.token_to_id(mark) for mark in marks}
        return {mark: token_id for mark, token_id in ids.items() if token_id in self.special_ids}

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered at all."""
        return bool(self._templates)

    def render(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_prompt: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation as text.

        `messages` are plain dicts as in the API. With `continue_final_message` the prompt ends where the last
        message's text ends. Tools are described by the template, with `tool_prompt` in front of the system text, or
        behind the system text, where `tool_prompt` introduces them. `kwargs` are further template variables. Raises
        `ApiError` 400 for what the template refuses or does not show, and for variables it does not read.
        """
        prompt = self._render(messages, add_generation_prompt, continue_final_message, tools, tool_prompt, kwargs or {})
        return prompt.text if prompt.mark is None else prompt.text.replace(prompt.mark, "")

    def encode_prompt(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_prompt: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: int | None = None,
        images: ImageInfo | None = None,
    ) -> list[int]:
        """The prompt of a conversation as token ids; arguments as in `render`. `images` is how the model takes them.

        Control tokens come from the template alone, a beginning-of-sequence token included. Raises `ApiError` 400 too
        for a prompt so much longer than `context` tokens that it need not be tokenised.
        """
        if context is not None:
            # Before any work that grows with the text. What other turns say, a template may leave out.
            shown = (part for message in messages if message["role"] != "assistant" for part in _texts(message))
            self.bounds.check("".join(shown), context, "messages")
        prompt = self._render(messages, add_generation_prompt, continue_final_message, tools, tool_prompt, kwargs or {})
        if context is not None:
            self.bounds.check(prompt.text, context, "messages")
        return self._encode_broken(self._spaced(prompt.text, images), prompt.mark)

    def _spaced(self, text: str, images: ImageInfo | None) -> str:
        """A prompt in which images stand apart from the text, where a model expects that."""
        shown = None if images is None else self._tokenizer.id_to_token(images.shown_id)
        if images is None or shown is None:
            return text
        return text.replace(shown, f"{images.spacing}{shown}{images.spacing}")

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        """Ids of a text, nothing added; with `allow_special` control tokens in it are matched."""
        if allow_special or not self._control.occur_in(text):
            return self._encode(text)
        mark = unused_break(text)
        return self._encode_broken(self._control.broken(text, mark), mark)

    def encode_raw(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[bool]]:
        """Ids of a raw prompt, in which control tokens are matched, and which of them the text does not hold.

        With `add_special_tokens` the tokenizer adds what its model expects around a text, as `<s>` before it.
        """
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids), [bool(added) for added in encoding.special_tokens_mask]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of generated ids. Ids the tokenizer does not know have none."""
        shown = (i for i in ids if i not in self.special_ids) if skip_special_tokens else ids
        text = self._token_text.join(shown).decode("utf-8", "replace")
        for _ in range(self.leading_spaces):
            text = text.removeprefix(" ")
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself; bytes that are no character by themselves show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _set_up_control_tokens(self) -> None:
        literals = "\0".join(template.literals for template in self._templates.values())
        inspected = "\0".join(text for template in self._templates.values() for text in template.inspected)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        plain = {token.content for token in added if not token.special}
        named = {content for content in plain if content in literals or looks_like_control(content)}
        self._control = ControlTokens(special | named)
        # A template that looks for `</think>` in an assistant's turn must find it.
        self._assistant_control = ControlTokens(special | {token for token in named if token not in inspected})
        normalized = [token.content for token in added if token.normalized and token.content in self._control.tokens]
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

    def _render(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: list[dict[str, Any]] | None,
        tool_prompt: str | None,
        kwargs: Mapping[str, Any],
    ) -> _Prompt:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise bad_request("This model has no chat template, so it cannot hold a conversation", param="messages")
        kwargs = self._read_variables(template, kwargs)
        messages = with_parsed_calls(messages, self._forms[name])
        outside = [messages, tools, tool_prompt, dict(kwargs)]
        self._check_normalized(outside)
        mark = unused_break(outside) if self._control.occur_in(outside) else None
        if mark is not None:
            messages = [self._broken_turn(message, mark) for message in messages]
            tools = self._control.broken(tools, mark)
            tool_prompt = self._control.broken(tool_prompt, mark)
            kwargs = self._control.broken(dict(kwargs), mark)
        if tools and not self.tool_form.by_template:
            text = tools_text(self.tool_form.calls, tools, tool_prompt)
            messages, tools = with_system_text(messages, text, in_front=False), None
        elif tools and tool_prompt:
            messages = with_system_text(messages, tool_prompt, in_front=True)
        turns = fit(messages, self._forms[name], self.tool_form.calls)
        end = mark_end(turns, outside, mark) if continue_final_message else None
        text = template.render(
            self._variables(turns, add_generation_prompt and not continue_final_message, tools, kwargs)
        )
        if end is not None:
            text = cut_at_end(text, end)
        check_shown(messages, text)
        return _Prompt(text, mark)

    def _broken_turn(self, message: Message, mark: str) -> Message:
        control = self._assistant_control if message["role"] == "assistant" else self._control
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

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts. Only the library's calls for many texts let other threads run meanwhile."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_broken(self, text: str, mark: str | None) -> list[int]:
        if mark is None:
            return self._encode(text)
        first, *others = text.split(mark)
        return self._encode(first) + self._encode_continuations([piece for piece in others if piece])

    def _encode_continuations(self, pieces: list[str]) -> list[int]:
        """Ids of texts that do not begin anything, so without the space SentencePiece puts before a first word."""
        if not self._adds_space:
            return [token_id for ids in self._encode_all(pieces) for token_id in ids]
        found: list[int] = []
        length = len(self._newline)
        for piece, ids in zip(pieces, self._encode_all(["\n" + piece for piece in pieces]), strict=True):
            found += ids[length:] if ids[:length] == self._newline else self._encode(piece)
        return found


def _texts(message: Message) -> list[str]:
    return [text.strip() for text in text_parts(message.get("content"))]


def _compile(name: str, source: str) -> ChatTemplate:
    try:
        return ChatTemplate(source)
    except Exception as error:  # a hostile source can make the compiler fail in any way
        raise ModelLoadError(f"the chat template '{name}' is broken: {error}") from None
