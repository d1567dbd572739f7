"""The template environment: Hugging Face's dialect, and bounds on hostile templates."""

import time
from datetime import datetime
from typing import Any

import jinja2
import pytest

from server import chat_template
from server.chat_template import ChatTemplate
from server.errors import ApiError


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(variables)


def refusal(source: str, **variables: Any) -> str:
    with pytest.raises(ApiError) as caught:
        render(source, **variables)
    assert caught.value.status == 400
    return caught.value.message


def test_the_dialect() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ x | tojson }}", x={"a": "<é>&'"}) == '{"a": "<é>&\'"}'
    assert render("{{ x | tojson(indent=1, sort_keys=true) }}", x={"b": 1, "a": 2}) == '{\n "a": 2,\n "b": 1\n}'
    assert render("{{ x | tojson(ensure_ascii=true) }}", x="é\ufdd0") == '"\\u00e9\ufdd0"'
    assert render("{% generation %}x{{ y }}{% endgeneration %}z", y="y") == "xyz"
    assert render("{{ 'a' ~ 1 ~ none }}{{ 'b' + 'c' * 2 }}") == "a1Nonebcc"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ undefined_name }}|{{ m.b is defined }}", m={}) == "|False"
    assert render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}") == "2"


def test_a_refusal_is_a_400_in_the_templates_own_words() -> None:
    assert "Only users here" in refusal("{{ raise_exception('Only users here') }}")
    assert "concatenate" in refusal("{{ 'a' + missing.b }}") or "undefined" in refusal("{{ 'a' + missing.b }}")
    assert len(refusal("{{ raise_exception('x' * 100000) }}")) < 600


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    try:
        text = render(source, messages=["x"])
    except ApiError:
        return
    assert "class" not in text, text


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in r %}{% for j in r %}{{ 'xxxxxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'ab' * 1000000000000 }}",
        "{{ 1000000000000 * [1] }}",
        "{{ 9 ** 999999999 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_an_exploding_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    began = time.monotonic()
    refusal(source, r=range(100_000))
    assert time.monotonic() - began < 5


def test_a_long_conversation_is_no_explosion() -> None:
    text = "x" * 5_000_000
    assert render("{% for m in messages %}{{ m + '!' }}{% endfor %}", messages=[text, text]) == f"{text}!{text}!"


def test_what_is_known_of_a_source() -> None:
    template = ChatTemplate("{% if '</a>' in c %}{{ c.split('<b>')[0] }}{% endif %}{{ '<t>' ~ date_string }}<u>")
    assert {"c", "date_string"} <= template.variables
    assert {"</a>", "<b>"} <= template.inspected
    assert "<t>" not in template.inspected
    assert "<t>" in template.literals and "<u>" in template.literals


def test_a_broken_source_is_an_error_at_once() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate("{% for %}")
