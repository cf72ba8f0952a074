"""Chat templates come with models, from anyone: they are rendered where they cannot reach out, run for ever or fill the memory.

Jinja's sandbox as transformers sets it up (same filters, same functions, same white space), with limits on top, those of time and memory
by limits.py. What stands between ``{% generation %}`` and ``{% endgeneration %}`` comes back marked. It refuses to know conversations.
"""

import json
import re
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ltune.data.limits import limited
from ltune.data.sane_values import WRITING, sane, sane_arguments
from ltune.data.sane_values import TooMuch as TooMuch

LONGEST = 100_000_000  # characters that one may come to
# Templates that write today's date write this one, which Llama 3.1 falls back on: a row must be the same tomorrow
TODAY = datetime(2024, 7, 26)
LARGEST_NUMBER = 100_000  # bits of a whole number; reckoning with larger ones takes long
WIDE = re.compile(r"%[^a-zA-Z%]*(\d{6}|\*)")  # a format such as %1000000d

METHODS = frozenset(dir(dict))


class Marked(str):
    """Text between ``{% generation %}`` and ``{% endgeneration %}``."""

    __slots__ = ()


def pieces(source: str, variables: dict[str, Any]) -> list[str]:
    """What the template writes, piece by piece; the pieces that are marked are ``Marked``.

    Raises:
        TooMuch: It goes beyond the limits.
        TemplateError: It is malformed, refuses, or tries to leave the sandbox; other errors of its own come as they are.
    """
    return limited(lambda: _render(source, variables))


def _render(source: str, variables: dict[str, Any]) -> list[str]:
    template = compiled(source)
    written: list[str] = []
    length = 0
    for piece in template.root_render_func(template.new_context(variables)):
        length += len(piece)
        if length > LONGEST:
            raise TooMuch(f"it writes more than {LONGEST:,} characters")
        written.append(piece)
    return written


@lru_cache(maxsize=64)
def compiled(source: str) -> Compiled:
    """The template ready to run; once for each source."""
    template = _environment().from_string(source)
    template.globals = dict(template.globals)  # each context copies them; Jinja's chain of dictionaries takes its time for that
    return template


# -- the sandbox ----------------------------------------------------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, without what makes something huge, or reckons with huge numbers, in one step that no alarm interrupts."""

    intercepted_binops = frozenset(("*", "**", "%", "//"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The same as Jinja's, which looks for a key of a dictionary last and by way of exceptions."""
        if type(obj) is dict and attribute not in METHODS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Raises at once: Jinja's gives something that prints as nothing."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left * right``, ``left ** right``, ``left % right`` or ``left // right``, if it is of a sane size."""
        if isinstance(left, str) and operator == "%":
            sane(right)
            huge = WIDE.search(left) is not None
        elif isinstance(left, int) and isinstance(right, int):
            huge = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length() > LARGEST_NUMBER
        else:
            huge = any(len(value) * times > LONGEST // 10 for value, times in ((left, right), (right, left)) if _repeats(value, times))
        if huge:
            raise TooMuch(f"it computes something huge with {operator}")
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *rest: Any, **named: Any) -> str:
        """What ``~`` joins becomes text as what is written does."""
        for concat in source.find_all(nodes.Concat):
            for number, node in enumerate(concat.nodes):
                if not isinstance(node, (nodes.Const, nodes.TemplateData)):
                    concat.nodes[number] = nodes.Filter(node, "_sane", [], [], None, None, lineno=node.lineno, environment=self)
        return super()._generate(source, *rest, **named)


def _repeats(value: Any, times: Any) -> bool:
    return isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 100 or (isinstance(value, int) and value.bit_length() > LARGEST_NUMBER):
        raise TooMuch("it rounds a huge number")
    return FILTERS["round"](value, precision, method)


def _divisible_by(value: int, number: int) -> bool:
    if max(value.bit_length(), number.bit_length()) > LARGEST_NUMBER:
        raise TooMuch("it divides a huge number")
    return value % number == 0


class GenerationMarks(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what is written between them. Inside a macro the mark is lost."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block becomes one that is filtered by ``_marked``: far quicker than a call of it, which goes through the sandbox."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.FilterBlock(body, nodes.Filter(None, "_marked", [], [], None, None)).set_lineno(line)


def _marked(written: Any) -> Marked:
    return Marked(sane(written))  # a template may call any filter by its name, this one too


class SafeNamespace(Namespace):
    """A ``namespace()`` whose names do not begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # so that values may hold "self"
        self, *mappings = args
        attributes = dict(*mappings, **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r}: a template stores nothing under a name that begins with an underscore")


@cache
def _environment() -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, loopcontrols])
    environment.finalize = sane
    environment.filters |= {name: sane_arguments(environment.filters[name]) for name in WRITING}
    environment.filters |= {"tojson": _tojson, "round": _round, "_sane": sane, "_marked": _marked}
    environment.tests["divisibleby"] = _divisible_by
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": TODAY.strftime,
        "dict": lambda *values, **named: dict(*values, **named),
        "namespace": SafeNamespace,
    }
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(sane(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(sane(message))
