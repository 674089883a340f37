"""Templates that are not trusted: none makes a huge value, and each fault is one clear sentence."""

import time

import pytest

from tasks.artifact import InputError
from tasks.data.templates import render

DOUBLED = "{%% set n = namespace(x='aaaa') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ n.x }}"
FAR, MUCH = "a text is padded too far", "it writes too much"


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
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it calls itself without end or is nested too deeply"),
    ],
)
def test_no_template_makes_a_huge_value(template: str, reason: str) -> None:
    begun = time.process_time()
    with pytest.raises(InputError) as error:
        render(template, {"a": "b"})
    assert reason in str(error.value) and len(str(error.value)) < 250 and str(error.value).endswith(".")
    assert time.process_time() - begun < 5


def test_what_templates_usually_do_is_done() -> None:
    template = (
        "{{ a ~ '!' ~ 3 }} {{ '%05d' % 7 }} {{ ['x', 'y']|join(', ') }} {{ a|center(3) }}. "
        "{{ '{:,}'.format(50000000) }} "
        "{{ a|replace('b', 'zz') }} {{ '%s'|format(50000000) }} {{ ' '.join([a, 'q']) }} {{ 3 * 4 }} {{ 7 % 3 }} "
        "{% set n = namespace(x='') %}{% for i in range(3) %}{% set n.x = n.x ~ i %}{% endfor %}{{ n.x }}"
    )
    assert render(template, {"a": "b"}) == "b!3 00007 x, y  b . 50,000,000 zz 50000000 b q 12 1 012"
