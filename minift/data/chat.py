"""From a conversation to text, in segments that say what is to be learned: [(text, learn), ...].

    messages --template--> "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n" "Hello!<|im_end|>"
                           not learned                                                 learned

A template is a jinja2 program, in a model's tokenizer_config.json or one of BUILT_IN here, so what a model was trained with can be
saved with it. A template does not tell where an answer starts, but it can be asked. With render(m) its text for the messages m,
and + the request to go on as the assistant (`add_generation_prompt`):

    prompt_i = render(messages[:i] +)          whole_i = render(messages[:i+1])          answer_i = whole_i less prompt_i

which needs whole_i to begin with prompt_i. Training and generation cut at the same places, so a prompt has the same ids in both
(trap 5). An answer ends with the template's end-of-turn token, and must: a model that never saw it would never stop. What the
template writes behind it (ChatML: a newline) belongs to the next prompt. The template's own BOS is the only one (trap 4; tokenizer/).

Templates come with models, and models from strangers: they run in jinja2's sandbox, without a way to Python or to files, and one
that tries is an InputError. Proved in tests/data/test_chat.py; the same text as transformers in tests/parity/test_tokenizers.py.
Left out: tools and documents (they are empty), and a limit on how long a template may run."""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from minift.errors import InputError
from minift.tokenizer import Tokenizer

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
"""

LLAMA_2 = """\
{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if messages[0].role == 'system' else '' %}
{% for message in messages %}
{% if message.role == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.index0 == (1 if system else 0) else '') + message.content.strip() + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- elif loop.index0 > 0 %}
{{ raise_exception('a system message can only come first') }}
{%- endif %}
{% endfor %}
"""

LLAMA_3 = """\
{{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content.strip() + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

ALPACA = """\
{% for message in messages %}
{% if message.role == 'system' %}
{{ message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{% if loop.first and message.input %}
{{ 'Below is an instruction that describes a task, paired with an input that provides further context. ' }}
{{- 'Write a response that appropriately completes the request.\n\n' }}
{%- elif loop.first %}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}
{%- elif loop.previtem.role == 'assistant' %}
{{ '\n\n' }}
{%- endif %}
{{ '### Instruction:\n' + message.content + '\n\n' + ('### Input:\n' + message.input + '\n\n' if message.input else '') }}
{{- '### Response:\n' }}
{%- else %}
{{ message.content + eos_token }}
{%- endif %}
{% endfor %}
"""

PLAIN = """\
{% for message in messages %}
{{ message.content + (eos_token if message.role == 'assistant' else '\n') }}
{%- endfor %}
"""

BUILT_IN = {"chatml": CHATML, "llama-2": LLAMA_2, "llama-3": LLAMA_3, "alpaca": ALPACA, "plain": PLAIN}
"""ChatML and Llama 3 need special tokens of their own (<|im_end|>, <|eot_id|>); the others make do with BOS and EOS."""

Segment = tuple[str, bool]


def render(
    messages: Sequence[dict], tokenizer: Tokenizer, template: str | None = None, *,
    add_generation_prompt: bool = False, input: str = "", every_turn: bool = False,
) -> list[Segment]:
    """The conversation [{"role": system | user | assistant, "content": ...}, ...] as segments; `learn` is set on the assistant's.

    template: a name in BUILT_IN, jinja source, or None for the tokenizer's own. add_generation_prompt: end where the assistant is
    to speak. input: Alpaca's second field, what the first question is about. every_turn: raise if an earlier answer cannot be told
    from its surroundings (some templates rewrite earlier turns); otherwise that answer is not cut out, and not learned.
    Rendering messages[:-1] with add_generation_prompt gives the segments of `messages` less the last."""
    source = template_source(tokenizer, template)
    messages = _with_input(messages, input, source)
    text = _run(source, messages, tokenizer, add_generation_prompt)
    segments: list[Segment] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _run(source, messages[:i], tokenizer, True)
        whole = _run(source, messages[: i + 1], tokenizer, False)
        end = len(prompt) + _end_of_turn(whole[len(prompt):], tokenizer) if whole.startswith(prompt) else 0
        if not (end and prompt.startswith(done) and text.startswith(whole[:end])):
            if every_turn or i == len(messages) - 1:
                parts = _around(whole[:end], text) if end else _around(prompt, whole)
                raise InputError(
                    f"the chat template writes turn {i + 1} (the assistant's) differently when it is asked for or when more follows: "
                    f"{parts}. Its answers cannot be told from its prompts: make a row of each answer, or use a built-in template: "
                    f"{', '.join(BUILT_IN)}")
            continue
        segments += [(prompt[len(done):], False), (whole[len(prompt):end], True)]
        done = whole[:end]
    if not messages or messages[-1]["role"] != "assistant" or add_generation_prompt:
        segments.append((text[len(done):], False))
    return [segment for segment in segments if segment[0]]


def template_source(tokenizer: Tokenizer, template: str | None = None) -> str:
    """The jinja source meant by a name, a source, or None (the tokenizer's own).

    Assign it to tokenizer.chat_template, and the model is saved with the template it was trained with."""
    if template is None and tokenizer.chat_template is None:
        raise InputError(f"this tokenizer has no chat template: choose a built-in one ({', '.join(BUILT_IN)}); "
                         "alpaca or plain suit a model that was never tuned to chat")
    template = tokenizer.chat_template if template is None else template
    if template not in BUILT_IN and not ("{{" in template or "{%" in template):
        raise InputError(f"unknown chat template {template!r}; known: {', '.join(BUILT_IN)}, or jinja source with {{{{ }}}} in it")
    return BUILT_IN.get(template, template)


def end_of_turn(tokenizer: Tokenizer, template: str | None = None) -> int:
    """The id that ends an answer under this template: generation must stop there. Raises InputError if there is none."""
    segments = render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer, template)
    return tokenizer.encode_segments(segments)[0][-1]


def _with_input(messages: Sequence[dict], input: str, source: str) -> list[dict]:
    """Alpaca's template has a place of its own for the input; elsewhere it follows the question after a blank line."""
    messages = [dict(message) for message in messages]
    asked = next((message for message in messages if message["role"] == "user"), None)
    if input and asked:
        asked |= {"input": input} if source == ALPACA else {"content": f"{asked['content']}\n\n{input}"}
    return messages


def _end_of_turn(answer: str, tokenizer: Tokenizer) -> int:
    """Where `answer` ends: behind the special token that closes it."""
    closing = {tokenizer.vocabulary.name(i) for i in (tokenizer.special_ids | tokenizer.end_ids) - {tokenizer.unk_id}}
    written = answer.rstrip()
    if not any(written.endswith(token) for token in closing):
        raise InputError(f"the chat template ends an answer with {answer[-24:]!r}, which is no end-of-turn token of this tokenizer, so the "
                         "model would never learn to stop. Write {{ eos_token }} after the answer in the template, use the alpaca or "
                         "plain template, or a tokenizer that has the template's special tokens")
    return len(written)


def _around(prompt: str, whole: str) -> str:
    """Where two texts part, for an error."""
    i = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), min(len(prompt), len(whole)))
    return f"...{prompt[max(0, i - 20):i]!r} is followed by {prompt[i:i + 20]!r} and then by {whole[i:i + 20]!r}"


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks the answer in some templates. We find it without; only the body counts."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, except that a forbidden attribute is an error at once and not an empty text."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise jinja2.sandbox.SecurityError(f"it reads {attribute!r} of a {type(obj).__name__}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)  # jinja's own escapes < and > for HTML


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return sandbox.from_string(source)


def _run(source: str, messages: Sequence[dict], tokenizer: Tokenizer, add_generation_prompt: bool) -> str:
    names = {f"{role}_token": text for role, text in tokenizer.tokens.items() if text}
    try:
        return _compiled(source).render(messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **names)
    except jinja2.sandbox.SecurityError as error:
        raise InputError(f"the chat template tries to reach into Python ({error}) and was stopped: do not use this tokenizer_config.json; "
                         f"a built-in template may do ({', '.join(BUILT_IN)})") from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is not valid jinja2: line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise InputError(f"the chat template refuses this conversation of {len(messages)} messages: {error}") from None
