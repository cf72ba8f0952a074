"""Templates from anywhere cannot hang, fill the memory or reach out; and they render as transformers renders them."""

import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from ltune.data.sandbox import Marked, TooMuch, pieces

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!", "items": 3}]


def render(source, **variables):
    return "".join(pieces(source, {"messages": MESSAGES, **variables}))


def test_marked_pieces():
    made = pieces("a{% generation %}b{{ x }}{% endgeneration %}c", {"x": "<x>"})
    assert [(text, isinstance(text, Marked)) for text in made] == [("a", False), ("b<x>", True), ("c", False)]


NESTED = "{% set n = namespace(x=['a']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"  # prints 'a' 2**60 times


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "not done after 1 s"),
        ("{% macro m() %}{% for a in range(999) %}{{ m() if a < 2 }}{% endfor %}{% endmacro %}{{ m() }}", "recursion|not done"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endfor %}",
            "more than 100,000,000 characters",
        ),
        ("{% set n = namespace(x='aaaa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "1 GiB of memory|not done"),
        ("{% set n = namespace(x='aaaa') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}", "1 GiB of memory|not done"),
        ("{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "huge with [*]"),
        ("{{ 'a' * 10**9 }}", "huge with [*]"),
        ("{{ 10**9 * [1] }}", "huge with [*]"),
        ("{{ 10 ** (10 ** 9) }}", "huge with [*][*]"),
        ("{{ '%1000000000d' % 1 }}", "huge with %"),
        ("{{ '%*d' % (1000000000, 1) }}", "huge with %"),
        ("{{ 1 | round(999999999, 'ceil') }}", "rounds a huge number"),
        ("{% set x = (0).from_bytes(('ab' * 999999).encode(), 'big') %}{{ x // 3 }}", "huge with //"),
        ("{% set x = (0).from_bytes(('ab' * 999999).encode(), 'big') %}{{ x is divisibleby(x - 1) }}", "divides a huge number"),
        ("{% set x = ('f' * 9999999) | int(base=16) %}{{ x % 7 }}", "huge with %"),
        (NESTED + "{{ n.x }}", "huge list"),
        (NESTED + "{{ n.x ~ '' }}", "huge list"),
        (NESTED + "{{ n.x | upper }}", "huge list"),
        (NESTED + "{{ n.x | _marked }}", "huge list"),
        (NESTED + "{{ [n.x] | map('_marked') | list }}", "huge list"),
        (NESTED + "{{ n.x | tojson }}", "huge list"),
        (NESTED + "{{ '%s' % n.x }}", "huge list"),
        (NESTED + "{{ raise_exception(n.x) }}", "huge list"),
        (NESTED.replace("[n.x, n.x]", "{1: n.x, 2: n.x}") + "{{ [n.x] | join }}", "huge list"),
        ("{{ 'a' | center(99999999999) }}", "1 GiB of memory"),
        ("{{ 'a'.ljust(99999999999) }}", "1 GiB of memory"),
    ],
)
def test_templates_that_never_end_are_stopped(source, says):
    before = time.monotonic()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises((TooMuch, RecursionError), match=says):
        render(source)
    assert time.monotonic() - before < 10
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert render("{{ messages[0].content }}") == "hi"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__globals__.x }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{% for m in messages %}{{ m.__class__.__init__ }}{% endfor %}",
    ],
)
def test_nothing_leaves_the_sandbox(source):
    with pytest.raises((SecurityError, AttributeError, TemplateError)):
        render(source)


def test_nothing_is_read_from_files():
    with pytest.raises(Exception, match="no loader"):
        render("{% include '/etc/passwd' %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {{ m.role }}:  {{- m['content'] }}\n    {% if loop.last %}\nend\n{% endif %}\n{% endfor %}\n",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': '<é&>', 'a': none} | tojson(sort_keys=true) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{% set n = namespace(found=false, self=1) %}{% for m in messages %}{% set n.found = true %}{% endfor %}{{ n.found }}{{ n.self }}",
        "{{ messages[1].items() | list }}{{ messages[1]['items'] }}{{ messages[0].nothing }}{{ dict(a=1) }}",
        "{{ '%s-%02d' % ('x', 3) }}{{ 'ab' * 3 }}{{ 2 ** 8 }}",
        "{{ 17 // 5 }}{{ 17 % 5 }}{{ 2.5 * 2 }}{{ 3 * [1] }}{{ 2.567 | round(1) }}{{ 6 is divisibleby 3 }}",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].content) }}{% set t %}  {{ bos_token }} {% endset %}{{ t | trim }}",
        "{{- bos_token }}{% generation %} a {% endgeneration -%}  b {{ messages[1:] | length }} {{ messages[-1].content.split('l') }}",
    ],
)
def test_it_renders_as_transformers_does(source):
    theirs, _ = render_jinja_template([MESSAGES], chat_template=source, bos_token="<s>", return_assistant_tokens_mask=True)
    mine = render(source, bos_token="<s>", tools=None, documents=None, add_generation_prompt=False)
    assert mine == theirs[0]


def test_other_threads_render_too():
    made = []
    thread = threading.Thread(target=lambda: made.append(render("{{ messages[0].content }}")))
    thread.start()
    thread.join()
    assert made == ["hi"]


def test_the_date_is_fixed():
    assert render("{{ strftime_now('%d %B %Y, %A') }}") == "26 July 2024, Friday"


def test_the_ceiling_is_above_what_the_process_has_taken_since():
    """torch and CUDA take many GiB of address space between a template's first look and its use; below that, not even the stack grows."""
    code = """if True:
        import mmap, resource, time
        from ltune.data.limits import FRESH, MEMORY, limited
        limited(lambda: None)
        more = mmap.mmap(-1, 3 * MEMORY)
        time.sleep(FRESH)
        ceiling = limited(lambda: resource.getrlimit(resource.RLIMIT_AS)[0])
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        print(ceiling > size)
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_it_imports_nothing_heavy():
    code = "import sys, ltune.data.templates; print(sorted({'torch', 'transformers', 'lightning', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
