"""Your own reward: any Python function in a file, `my_rewards.py:polite`, called the way trl calls its reward functions.

    polite(prompts=[n texts], completions=[n texts], completion_ids=[n lists], answer=[n values], ...) -> n numbers

The record's other columns come as lists under their names, None where a record has no such column. A function gets the
arguments that its signature names, and all of them if it takes **kwargs. Whatever it raises becomes a RewardError with the line it failed in.
Proved in tests/rl/test_rewards.py. Left out: async functions; prompts and completions as lists of messages (both are texts)."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minift.errors import InputError
from minift.rl.reward_source import Answered, RewardError, rows


class FunctionReward:
    """A source that calls `function`."""

    def __init__(self, name: str, function: Callable):
        if not callable(function) or inspect.iscoroutinefunction(function):
            kind = "an async function" if callable(function) else f"a {type(function).__name__}"
            raise InputError(f"the reward {name} is {kind}; wanted a plain function of prompts and completions")
        self.name, self.function = name, function
        parameters = inspect.signature(function).parameters.values()
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.takes, self.needs = {p.name for p in named}, [p.name for p in named if p.default is p.empty]

    def __call__(self, answers: Sequence[Answered]) -> Any:
        given = {name: [answer.fields.get(name) for answer in answers] for name in dict.fromkeys(name for answer in answers for name in answer.fields)}
        given |= {
            "prompts": [answer.prompt for answer in answers],
            "completions": [answer.text for answer in answers],
            "completion_ids": [list(answer.ids) for answer in answers],
        }
        if missing := [name for name in self.needs if name not in given]:
            raise RewardError(f"the reward {self.name} wants the argument {missing[0]!r}, and {rows(answers)} has no such column; found {', '.join(given)}")
        try:
            return self.function(**{name: values for name, values in given.items() if self.takes_all or name in self.takes})
        except (Exception, SystemExit) as error:
            raise RewardError(f"the reward {self.name} failed on {rows(answers)}: {describe(error)}") from error


def load_function(spec: str) -> FunctionReward:
    """`file.py:function`. Raises InputError if there is no such file or function, or if the file cannot be run."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no such file: {path}, named by the reward {spec}; wanted file.py:function")
    found = importlib.util.spec_from_file_location(f"reward_in_{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module                                        # dataclasses look themselves up there
    sys.path.insert(0, str(path.parent.absolute()))                         # as if the file were run: it may import its neighbours
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run to find the reward {name}: {describe(error)}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    if not hasattr(module, name):
        functions = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v)) or "none"
        raise InputError(f"{path} has no function {name!r}; its functions: {functions}")
    return FunctionReward(spec, getattr(module, name))


def describe(error: BaseException) -> str:
    """An error of somebody else's code in one line: its kind, its text, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
