"""A model's state as it travels: by the names of the module as it was written."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from codec.errors import CodecError

if TYPE_CHECKING:
    from torch import Tensor, nn

_COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module
_SHOWN = 3


def plain_name(name: str) -> str:
    """Return a parameter's or buffer's name without what ``torch.compile`` adds to it."""
    return name.replace(_COMPILED, "")


def model_state(model: "nn.Module") -> "dict[str, Tensor]":
    """Return a model's state, the same for a compiled model as for a plain one.

    Types that NumPy does not know, such as bfloat16, become float32, which holds their values.
    """
    import torch

    return {
        plain_name(name): value.float() if value.dtype == torch.bfloat16 else value
        for name, value in model.state_dict().items()
    }


def trainable_names(model: "nn.Module") -> list[list[str]]:
    """Return the names of each trainable parameter, in ``model.parameters()`` order.

    A parameter that is shared has several.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(plain_name(name))
    return list(names.values())


def load_state(model: "nn.Module", state: "Mapping[str, Tensor]") -> None:
    """Load a state that `model_state` returned, at this end or the other.

    Raises
    ------
    CodecError
        If the model's own state has other names or shapes.
    """
    own = {plain_name(name): (name, value) for name, value in model.state_dict().items()}
    given = {plain_name(name): value for name, value in state.items()}
    problems = [
        _named("missing", own.keys() - given.keys()),
        _named("unknown", given.keys() - own.keys()),
        _named(
            "of another shape",
            (
                f"{name} {tuple(value.shape)}, here {tuple(own[name][1].shape)}"
                for name, value in given.items()
                if name in own and value.shape != own[name][1].shape
            ),
        ),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise CodecError(
            f"the state does not fit the model {type(model).__name__}: {found}; "
            "server and clients must build the same model"
        )
    model.load_state_dict({own[name][0]: value for name, value in given.items()})


def _named(what: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{what}: {', '.join(listed[:_SHOWN])}{more}" if listed else ""
