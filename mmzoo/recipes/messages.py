"""Turn pydantic's errors into messages that name the recipe's key."""

from __future__ import annotations

from pydantic import ValidationError

from mmzoo.common.suggestions import did_you_mean
from mmzoo.recipes.training_options import TrainingOptions


def explain(error: ValidationError, origin: str, *, prefix: str = "", known: list[str] | None = None) -> str:
    """Return a message for a pydantic error, with one line for each key.

    Args:
        error: what pydantic raised.
        origin: what was validated, for the first line.
        prefix: put before each key, for example ``encoder``.
        known: the valid keys, for suggestions.
    """
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join([*([prefix] if prefix else []), *(str(step) for step in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            names = list(TrainingOptions.model_fields) if key.startswith("training.") else known or []
            advice = did_you_mean(str(problem["loc"][-1]), names, 1) or (f"the options are {', '.join(names)}" if names else "")
            text = f"unknown option; {advice}" if advice else "unknown option"
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            shown = repr(problem.get("input"))
            text = f"{problem['msg'].removeprefix('Value error, ')} (got {shown if len(shown) < 80 else shown[:77] + '...'})"
        lines.append(f"  {key or '(the whole)'}: {text}")
    return f"{origin}: {len(lines)} key{'s' if len(lines) > 1 else ''} wrong\n" + "\n".join(lines)
