"""The template environment: Hugging Face's dialect, and bounds on hostile templates."""

import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import jinja2
import pytest

from server.prompt import template_limits
from server.prompt.chat_template import ChatTemplate
from server.protocol.errors import ApiError
from tests.clocks import PATIENCE, cpu_seconds
from tests.places import ROOT
from tests.server.made_up_time import TickingClock


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(variables)


def refusal(source: str, **variables: Any) -> str:
    with pytest.raises(ApiError) as caught:
        render(source, **variables)
    assert caught.value.status == 400
    return caught.value.message


MOST = 100
"""Honest renders that the most hostile one may cost in the processor's time."""


def render_honestly(clock: TickingClock) -> str:
    """A yardstick: not far from all the rounds of loops that a render may have by the clock."""
    rounds = int(0.4 * template_limits.RENDER_SECONDS / clock.step)
    return render("{% for i in r %}{{ i }}{% endfor %}", r=range(rounds))


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
    clock = TickingClock(0.001)
    monkeypatch.setattr(template_limits, "time", clock)
    assert cpu_seconds(lambda: refusal(source, r=range(100_000))) < MOST * cpu_seconds(lambda: render_honestly(clock))


def test_a_render_is_stopped_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TickingClock(0.001)
    monkeypatch.setattr(template_limits, "time", clock)
    assert "longer than 10 seconds" in refusal("{% for i in r %}{% endfor %}", r=range(100_000))
    assert template_limits.RENDER_SECONDS < clock.now < template_limits.RENDER_SECONDS + 0.01


PARTS = 4
EXPLOSIONS = [
    "{{ 'x' * 10**9 }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '7'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x' | map('center', 10**9) | list }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(100000) | map('string')) }}",
    "{{ range(100000) | join('a' * 1000000) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ '%01000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%01000000000d' | format(1) }}",
    "{{ ('%s' * 100000) | format(*(['a' * 100000] * 100000)) }}",
    "{{ ('%(a)s' * 100000) | format(a='a' * 1000000) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('{0}' * 100000).format('a' * 1000000) }}",
    "{{ ('{a}' * 100000).format_map({'a': 'a' * 1000000}) }}",
    "{{ ('a\\n' * 1000000) | indent(1000000) }}",
    "{{ 'a\\na' | indent(1000000000) }}",
    "{{ ('a' * 1000000) | wordwrap(1, true, 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | wordwrap(1, wrapstring='b' * 1000000) }}",
    "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "{{ {'a': 1} | tojson(separators=('a' * 1000000, 'b' * 1000000)) }}",
    "{{ range(10**9) | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ ('x' * 4000000) | list | join('yyyyyyyyyyyyyyyy') }}",
    "{{ lipsum(n=1000000000) }}",
    "{{ (1).to_bytes(1000000000) }}",
    "{{ 'x'.encode().zfill(1000000000) }}",
    "{{ 5 | round(-1000000000) }}",
    "{{ 5 | round(-1000000000, 'ceil') }}",
    "{{ (9 ** 256) ** 256 ** 2 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x == 1 }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = dict.fromkeys('ab', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=[[1]]) %}{% for i in range(60) %}{% set ns.x = [(ns.x + ns.x)] %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}"
    "{{ ns.x }}",
    "{% set x %}{% for i in r %}{% for j in r %}" + "x" * 100_000 + "{% endfor %}{% endfor %}{% endset %}{{ x }}",
    "{% set b = 'x' * 3000000 %}{% set x %}{% for i in r %}{{ b ~ i }}{% endfor %}{% endset %}{{ x }}",
    "{% set b = 'x' * 3000000 %}{% macro f() %}{% for i in r %}{{ b + 'y' }}{% endfor %}{% endmacro %}{{ f() }}",
    "{% set ns = namespace(x=[]) %}{% for i in r %}{% set ns.x = ns.x + ['x' * 3000000] %}{% endfor %}",
]


@pytest.mark.parametrize("part", range(PARTS))
def test_no_single_step_of_a_template_fills_the_memory(part: int) -> None:
    """Each runs in a process that has no memory to spare, and must be refused by a limit, not for want of memory."""
    code = (
        "import json, resource, sys, time\n"
        "from server.prompt import template_limits\n"
        "from server.prompt.chat_template import ChatTemplate\n"
        "from server.protocol.errors import ApiError\n"
        "from tests.clocks import cpu_seconds\n"
        "from tests.server.made_up_time import TickingClock\n"
        "from tests.server.prompt.test_chat_template import render_honestly\n"
        "resource.setrlimit(resource.RLIMIT_AS, (900_000_000, 900_000_000))\n"
        "template_limits.time = clock = TickingClock(0.001)\n"
        "honest = cpu_seconds(lambda: render_honestly(clock))\n"
        "for source in json.load(sys.stdin):\n"
        "    began = time.thread_time()\n"
        "    try:\n"
        "        said = 'wrote ' + ChatTemplate(source).render({'r': range(100_000)})[:100]\n"
        "    except ApiError as error:\n"
        "        said = error.message\n"
        "    print(json.dumps([source[:200], said, (time.thread_time() - began) / honest]))\n"
    )
    sources = EXPLOSIONS[part::PARTS]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(sources), done.stderr
    for source, words, times_honest in said:
        assert "cannot show" in words and "memory" not in words, (source, words)
        assert times_honest < MOST, (source, words, times_honest)


def test_what_real_templates_build_is_within_the_limits() -> None:
    assert render("{{ 'x' | center(9) }}{{ 'ab'.center(4) }}{{ 5 | replace(5, 6) }}") == "    x     ab 6"
    assert render("{{ 'a\nb' | indent(2) }}{{ 'x'.join(['a', 'b']) }}{{ 'x'.join(l | map('upper')) }}", l="ab") == (
        "a\n  baxbAxB"
    )
    assert render("{{ '%05.1f|%s' % (1.5, 'x') }}{{ '%s' | format('y') }}{{ '{:>3}{a}'.format(1, a=2) }}") == (
        "001.5|xy  12"
    )
    assert render("{{ [1, x] + [2] }}{{ {'a': x} }}{{ (x,) }}{{ dict(a=x).items() | list }}", x=3) == (
        "[1, 3, 2]{'a': 3}(3,)[('a', 3)]"
    )
    assert render("{{ l | batch(2) | list }}{{ l | sort | last }}{{ l | map('int') | sum }}", l=["1", "2", "3"]) == (
        "[['1', '2'], ['3']]36"
    )
    assert render("{{ 2 ** 10 }}{{ 3 * 4 }}{{ 7 % 4 }}{{ 1.25 | round(1) }}{{ 'ab' * 2 }}{{ 2 * [0] }}") == (
        "10241231.2abab[0, 0]"
    )
    assert render("{% set x %}a{{ 1 }}{% endset %}{% macro f(y) %}<{{ y }}>{% endmacro %}{{ f(x) ~ x }}") == "<a1>a1"
    assert render("{{ 'a b'.split() | join('-') }}{{ 'abc'[::-1] }}{{ 'abc' | reverse }}{{ 'aXb'.lower() }}") == (
        "a-bcbacbaaxb"
    )
    many = [{"role": "user", "content": "word " * 200}] * 4000
    text = render("{% for m in messages[1:] %}{{ [m] + messages[:1] | list }}{% endfor %}", messages=many)
    assert len(text) > 2 * 3999 * 1000
    source = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ ns.t }}"
    )
    assert len(render(source, messages=many)) == 4_000_000


def test_a_long_conversation_is_no_explosion() -> None:
    text = "x" * 5_000_000
    assert render("{% for m in messages %}{{ m + '!' }}{% endfor %}", messages=[text, text]) == f"{text}!{text}!"


def test_what_is_known_of_a_source() -> None:
    template = ChatTemplate("{% if '</a>' in c %}{{ c.split('<b>')[0] }}{% endif %}{{ '<t>' ~ date_string }}<u>")
    assert {"c", "date_string"} <= template.variables
    assert {"</a>", "<b>"} <= template.inspected
    assert "<t>" not in template.inspected
    assert "<t>" in template.literals and "<u>" in template.literals


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("{{ a }}{% set b = c %}{{ b }}", {"a", "c"}),
        ("{% for m in ms %}{% if m %}{% set r = 1 %}{% else %}{% set r = 2 %}{% endif %}{{ r }}{% endfor %}", {"ms"}),
        ("{% for m in ms %}{% if m %}{% set r = 1 %}{% endif %}{{ r }}{% endfor %}", {"ms", "r"}),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", {"x"}),
        ("{% if y %}{% set x = 1 %}{% else %}{{ raise_exception('no') }}{% endif %}{{ x }}", {"y"}),
        ("{% for m in ms %}{% if m %}{% set x = 1 %}{% else %}{% continue %}{% endif %}{{ x }}{% endfor %}", {"ms"}),
        ("{% for m in ms %}{% set x = m %}{% endfor %}{{ x }}", {"ms", "x"}),
        ("{% for m in ms %}{{ x }}{% set x = m %}{% endfor %}", {"ms", "x"}),
        ("{% macro f(a=b) %}{{ a }}{% endmacro %}{% set t %}{{ d }}{% endset %}{{ t }}", set("bd")),
        ("{% macro f(a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{% set ns = namespace(z=q) %}{{ ns.z }}", {"b", "q"}),
        ("{% set t %}{{ u }}{% endset %}{{ t }}{% if a %}{% elif b %}{% set t = v %}{% endif %}{{ t }}", set("uabv")),
    ],
)
def test_variables_are_those_read_from_outside(source: str, variables: set[str]) -> None:
    assert ChatTemplate(source).variables == variables


def test_a_broken_source_is_an_error_at_once() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate("{% for %}")
