"""What the writer is told, by name. A recipe may put its own words in place of any (`prompts = { NAME = "..." }`).

`{{ name }}` is filled in once; what is filled in is never looked at again, so that data cannot change a prompt.
"""

import re
from collections.abc import Mapping

_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")

_EVOLVE = """You rewrite instructions for an assistant.

{change}
The new instruction must make sense by itself, and be something that a person could ask and that can be answered in
text. Leave tables, code and other material of the old one in it. Do not
answer it, and do not speak of this task.

The old instruction, between the lines:
----------
{{{{ instruction }}}}
----------

Write the new instruction and nothing else."""

_ANSWERED = """The request:
----------
{{ request }}
----------

The answer:
----------
{{ answer }}
----------
"""

PROMPTS: dict[str, str] = {
    "instructions": """Below is a numbered list of tasks that people give an assistant who answers in text.

{{ tasks }}

Go on with {{ count }} more tasks, numbered from {{ next }}. Let them differ from those above and from one another in
topic, in form (questions, orders, wishes) and in difficulty. Each is one task of one or two sentences that can be
done by writing, without looking at anything. Write the list and nothing else.""",
    "classification": """Some tasks are classification tasks: their answer is one of a few given labels.

{{ examples }}

Task: {{ instruction }}
Is this a classification task? Answer yes or no.""",
    "input_first": """For a task you make up {{ count }} example(s) of it: what is given (the input) and the right
answer (the output). Some tasks need no input; then write "Input: none". Use exactly this form:

Input: ...
Output: ...

{{ examples }}

Task: {{ instruction }}""",
    "output_first": """For a classification task you make up {{ count }} example(s), with different labels where there
are several: first the label, then an input to which it belongs. Use exactly this form:

Label: ...
Input: ...

{{ examples }}

Task: {{ instruction }}""",
    "evolve_constraints": _EVOLVE.format(
        change="Add one more constraint or requirement to the instruction below, in at most 20 more words."
    ),
    "evolve_deepen": _EVOLVE.format(
        change="Where the instruction below asks about something, let it ask for more depth and more breadth, in at "
        "most 20 more words."
    ),
    "evolve_concretise": _EVOLVE.format(
        change="Replace what is general in the instruction below with something more concrete and particular, in at "
        "most 20 more words."
    ),
    "evolve_reasoning": _EVOLVE.format(
        change="Where the instruction below can be done in a few simple steps, change it so that it takes several "
        "steps of reasoning, in at most 20 more words."
    ),
    "evolve_complicate_input": _EVOLVE.format(
        change="Give the instruction below material to work on (a table, a text, code, numbers, JSON or the like), or "
        "make what it has more complicated."
    ),
    "evolve_broaden": _EVOLVE.format(
        change="Write a wholly new instruction of the same field as the one below, about something rarer, and as long "
        "and as hard."
    ),
    "compare": """Two instructions, each between lines.

The first:
----------
{{ first }}
----------

The second:
----------
{{ second }}
----------

Do they ask for the same, with the same constraints, depth and breadth? Answer yes or no.""",
    "critique": f"""Below are a request to an assistant and the assistant's answer.

{_ANSWERED}
Hold the answer against this principle: {{{{ principle }}}}

Say in a few sentences where the answer falls short of it and what to change, or that it does not fall short. Then end
with a line of its own: "Verdict: revise", or "Verdict: keep" where nothing has to change.""",
    "revision": f"""Below are a request to an assistant, the assistant's answer, and a critique of that answer.

{_ANSWERED}
The principle: {{{{ principle }}}}

The critique:
----------
{{{{ critique }}}}
----------

Write the answer anew so that the critique no longer holds. Keep what was good, and its form. If the critique finds no
fault, repeat the answer word for word. Write the answer as it goes to whoever made the request and nothing else: not
a word about the principle, the critique, the old answer or what you changed.""",
}


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with its places filled in, once."""
    return _PLACE.sub(lambda match: str(values[match[1]]), template)


def places(template: str) -> set[str]:
    """The names that a template has places for."""
    return set(_PLACE.findall(template))


def prompt_fault(name: str, text: str) -> str:
    """What is wrong with a recipe's own words for a prompt, a clause; empty when nothing is."""
    known, given = places(PROMPTS[name]), places(text)
    if unknown := sorted(given - known):
        return f"has a place for '{unknown[0]}'; there are {', '.join(sorted(known))}"
    needed = known - {"examples", "count", "next", "principle"}
    if missing := sorted(needed - given):
        return f"has no place for what it is about; write {{{{ {missing[0]} }}}} in it"
    return ""
