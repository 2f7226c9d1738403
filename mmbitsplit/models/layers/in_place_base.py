"""What classes that modules take in place have in common."""

from torch import nn


class InPlaceModule(nn.Module):
    """State, moves and modes are torch's own, whatever the class of the module below does there.

    A layer's class may merge weights in ``train`` or write other names into a state dict; what it
    works on is not there while codes are in its place.
    """

    train = nn.Module.train
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state
    _apply = nn.Module._apply
    _save_to_state_dict = nn.Module._save_to_state_dict
    _load_from_state_dict = nn.Module._load_from_state_dict


def must_be_called(module: nn.Module, args: tuple) -> None:
    """A hook that does nothing: parents with a fused path that reads the weights of their layers
    instead of calling them (``nn.TransformerEncoderLayer``) leave it where there are hooks."""

