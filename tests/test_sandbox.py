"""Templates that are not trusted: none makes a huge value, and each fault is one clear sentence."""

import time
import tracemalloc

import pytest

from tasks.artifact import InputError
from tasks.data import template_limits
from tasks.data.templates import render

DOUBLED = "{%% set n = namespace(x='aaaa') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ n.x }}"
NESTED = "{%% set n = namespace(x=[1]) %%}{%% for i in range(40) %%}{%% set n.x = [n.x, n.x] %%}{%% endfor %%}{{ %s }}"
FAR, MUCH, ROUND = "a text is padded too far", "it writes too much", "it goes round too often"
LARGE = "a value is too large"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ '%050000000d' % 1 }}", FAR),
        ("{{ '%*d' % (50000000, 1) }}", FAR),
        ("{{ '%50000000s'|format(a) }}", FAR),
        ("{{ '{:50000000d}'.format(1) }}", FAR),
        ("{{ '{:{w}d}'.format(1, w=50000000) }}", FAR),
        ("{{ a|center(50000000) }}", FAR),
        ("{{ a.ljust(50000000) }}", FAR),
        ("{{ a|attr('zfill')(50000000) }}", FAR),
        ("{{ [a]|map('center', 50000000)|list }}", FAR),
        ("{{ [a]|batch(50000000, 'x')|list }}", FAR),
        ("{{ (a * 1000000)|replace('b', 'c' * 1000000) }}", MUCH),
        ("{{ (['x' * 1000000] * 1000)|join }}", MUCH),
        ("{{ ''.join(['x' * 1000000] * 1000) }}", MUCH),
        (DOUBLED % "{% set n.x = n.x ~ n.x %}", MUCH),
        (DOUBLED % "{% set n.x = n.x + n.x %}", MUCH),
        (DOUBLED % "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}", MUCH),
        ("{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 99 + "{% endfor %}{% endfor %}", MUCH),
        (
            "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "a product is too",
        ),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "it calls itself without end"),
        ("{{ (a * 1000000)|wordwrap(1, wrapstring='c' * 1000000) }}", MUCH),
        ("{{ ('{0}' * 300000).format('c' * 1000000) }}", MUCH),
        ("{{ ('%s' * 300000)|format('c' * 1000000) }}", MUCH),
        ("{{ ('%(x)s' * 100000) % {'x': 'c' * 999000} }}", MUCH),
        ("{{ ['c' * 1000000] * 1000 }}", LARGE),
        ("{{ ([['c' * 1000] * 1000] * 1000)|string }}", LARGE),
        ("{{ {'x': 'c' * 900000, 'y': 'c' * 900000}.values() }}", LARGE),
        ("{{ ([range(99999)|list] * 1000)|sum(start=[]) }}", "only numbers are added up"),
        ("{{ a.translate({97: 'c' * 1000000}) }}", "it calls 'translate', which templates may not"),
        ("{{ (5).to_bytes(1000000000) }}", "it calls 'to_bytes'"),
        ("{{ {}.fromkeys(range(99999)) }}", "it calls 'fromkeys'"),
        ("{{ [a]|map('urlize', target=a)|list }}", "No filter named 'urlize'"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", ROUND),
        ("{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}", ROUND),
        ("{% macro m(n) %}{% if n %}{% set x = m(n - 1) ~ m(n - 1) %}{% endif %}{% endmacro %}{{ m(40) }}", ROUND),
        ("{{ (a * 900000)|wordwrap(1) }}", ROUND),
        (NESTED % "n.x == [n.x[0], n.x[1]]", LARGE),
        (NESTED % "n.x is eq([n.x[0], n.x[1]])", LARGE),
        (NESTED % "[n.x, [n.x[0], n.x[1]]]|sort", LARGE),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it calls itself without end or is nested too deeply"),
    ],
)
def test_no_template_makes_a_huge_value(template: str, reason: str) -> None:
    begun = time.process_time()
    with pytest.raises(InputError) as error:
        render(template, {"a": "b"})
    assert reason in str(error.value) and len(str(error.value)) < 250 and str(error.value).endswith(".")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "turn",
    [
        "{% if 'ab' in x %}{% endif %}",
        "{% set y = x[::-1] %}",
        "{{ xs|select('in', xs)|list }}",
        "{{ xs.count(-1) }}",
        "{{ -1 in xs }}",
    ],
)
def test_turns_that_take_long_end(turn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    made = "{% set x = 'a' * 900000 %}{% set xs = range(20000)|list %}"
    begun = time.process_time()
    with pytest.raises(InputError, match="it takes too long"):
        render(f"{made}{{% for i in range(99999) %}}{turn}{{% endfor %}}", {})
    assert time.process_time() - begun < 2


NULLS = [
    "{{ x }}", "{{ a ~ x }}", "{{ '%s' % x }}", "{{ x|upper }}", "{{ x|string }}", "{{ [a, x]|join }}", "{{ n.x }}",
    "{{ n['x']|trim }}", "{{ '{}'.format(x) }}", "{% for each in xs %}{{ each }}{% endfor %}", "{{ nan }}",
    "{{ ', '.join(xs) }}", "{{ x if a }}",
]  # fmt: skip


@pytest.mark.parametrize("template", NULLS)
def test_no_null_is_written(template: str) -> None:
    row = {"a": "b", "x": None, "n": {"x": None}, "xs": ["c", None], "nan": float("nan")}
    with pytest.raises(InputError, match="null"):
        render(template, row)


def test_a_template_may_ask_for_a_null() -> None:
    asked = (
        "{% if x %}1{% endif %}{% if not x %}2{% endif %}{% if x is none %}3{% endif %}{% if x == None %}4{% endif %}"
        "{{ x or 5 }}{{ x|default(6) }}{% if x is defined %}7{% endif %}{% if n.x != none %}8{% endif %}"
        "{{ x in [none] }}"
    )
    assert render(asked, {"x": None, "n": {"x": None}}) == "234567True"
    assert render("{{ n|tojson }}", {"n": {"x": None}}) == '{"x": null}'


def test_peak_memory_of_what_is_refused_is_small() -> None:
    tracemalloc.start()
    for template in (
        "{{ (a * 999999)|wordwrap(1, wrapstring='c' * 999) }}",
        "{{ ('{0}' * 300000).format('c' * 999999) }}",
    ):
        with pytest.raises(InputError):
            render(template, {"a": "b"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_what_templates_usually_do_is_done() -> None:
    template = (
        "{{ a ~ '!' ~ 3 }} {{ '%05d' % 7 }} {{ ['x', 'y']|join(', ') }} {{ a|center(3) }}. "
        "{{ '{:,}'.format(50000000) }} "
        "{{ a|replace('b', 'zz') }} {{ '%s'|format(50000000) }} {{ ' '.join([a, 'q']) }} {{ 3 * 4 }} {{ 7 % 3 }} "
        "{% set n = namespace(x='') %}{% for i in range(3) %}{% set n.x = n.x ~ i %}{% endfor %}{{ n.x }}"
    )
    assert render(template, {"a": "b"}) == "b!3 00007 x, y  b . 50,000,000 zz 50000000 b q 12 1 012"
