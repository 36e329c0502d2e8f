"""Turn pydantic's errors into messages that name the recipe's key."""

from __future__ import annotations

from pydantic import ValidationError

from mmzoo.recipes.training_options import TrainingOptions


def explain(error: ValidationError, origin: str, *, prefix: str = "", known: list[str] | None = None) -> str:
    """A pydantic error in this package's words: one line a key."""
    import difflib

    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join([*([prefix] if prefix else []), *(str(step) for step in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            names = list(TrainingOptions.model_fields) if key.startswith("training.") else known or []
            near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
            text = "unknown option" + (f"; did you mean '{near[0]}'?" if near else "")
            if not near and names:
                text += f"; the options are {', '.join(names)}"
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            shown = repr(problem.get("input"))
            text = f"{problem['msg'].removeprefix('Value error, ')} (got {shown if len(shown) < 80 else shown[:77] + '...'})"
        lines.append(f"  {key or '(the whole)'}: {text}")
    return f"{origin}: {len(lines)} key{'s' if len(lines) > 1 else ''} wrong\n" + "\n".join(lines)
