"""Says of a call that multiplies what it can become: a product, a layer, or nothing."""

from typing import Any

from torch import Tensor, nn

from mmbitsplit.models.layers.geometry import is_replaced
from mmbitsplit.models.opening.attention import bind_multi_head
from mmbitsplit.models.opening.calls import ATTENTION, CONVOLUTIONS, MULTI_HEAD, MULTIPLIES, bound
from mmbitsplit.models.opening.dependence import Dependence
from mmbitsplit.models.opening.multiply import Multiply, NotOpened
from mmbitsplit.models.opening.rows import Row, View
from mmbitsplit.models.watch.storages import carries_values, odd_layout, storage_of

PASS: Row = {'kind': 'pass'}


class Classifier:
    """Knows whose parameters tensors are.

    Args:
        model: That runs.
        dependence: Told every operation of the run.
    """

    def __init__(self, model: nn.Module, dependence: Dependence):
        self.dependence = dependence
        self._holders: dict[Any, list[tuple[str, nn.Module, str, Tensor]]] = {}
        for module_name, module in model.named_modules():
            for name, value in module._parameters.items():
                if value is not None:
                    self._holders.setdefault(storage_of(value), []).append(
                        (module_name, module, name, value))

    def row(self, module: nn.Module | None, func: Any, args: tuple, kwargs: dict[str, Any],
            ) -> Row:
        """What a call in a module's own forward can become.

        Raises:
            NotOpened: Nothing; says why.
            NoProduct: It multiplies nothing.
        """
        if func is ATTENTION:
            return self._attention(args, kwargs)
        if func is MULTI_HEAD:
            return self._multi_head(module, bind_multi_head(args, kwargs))
        if func in CONVOLUTIONS:
            return self._convolution(module, CONVOLUTIONS[func], args, kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                _check_layout(value)
        call = MULTIPLIES[func][1](args, kwargs)
        if not (carries_values(call.a) and carries_values(call.b)):
            return PASS  # counts
        a, b = self.dependence.on_input(call.a), self.dependence.on_input(call.b)
        if not (a or b):
            return PASS
        if call.a.is_complex() or call.b.is_complex():
            raise NotOpened('a product of complex numbers')
        if a != b:
            row = self._linear(module, call, 'b' if a else 'a')
            if row is not None:
                return row
        return {'kind': 'product', 'softmax': 'a' if self.dependence.from_softmax(call.a) else
                'b' if self.dependence.from_softmax(call.b) else None}

    def _attention(self, args: tuple, kwargs: dict[str, Any]) -> Row:
        tensors = [value for value in (*args[:3], *kwargs.values()) if isinstance(value, Tensor)]
        for tensor in tensors:
            _check_layout(tensor)
        return {'kind': 'attention'} if any(map(self.dependence.on_input, tensors)) else PASS

    def _multi_head(self, module: nn.Module | None, given: dict[str, Any]) -> Row:
        for name in ('query', 'key', 'value'):
            _check_layout(given[name])
        if given['static_k'] is not None or given['static_v'] is not None:
            raise NotOpened('keys or values that are projected already (static_k, static_v)')
        separate = given['use_separate_proj_weight']
        weights = [given[f'{side}_proj_weight'] for side in 'qkv'] if separate \
            else [given['in_proj_weight']]
        views = [self._own_view(module, weight) for weight in weights]
        bias = None if given['in_proj_bias'] is None else \
            self._own_view(module, given['in_proj_bias'])
        if None in views or (bias is None and given['in_proj_bias'] is not None):
            raise NotOpened('attention with projections that are no parameters of its own')
        out = self._weight(module, given['out_proj_weight'], given['out_proj_bias'])
        if out is None:
            raise NotOpened('attention whose output projection is no parameter')
        together = not separate and given['query'] is given['key'] is given['value']
        return {'kind': 'multi_head', 'together': together,
                'weights': [view.row() for view in views],
                'bias': None if bias is None else bias.row(), 'out': out}

    def _linear(self, module: nn.Module | None, call: Multiply, side: str) -> Row | None:
        """A row of a weight on one side; ``None`` where what is there is no parameter."""
        weight = call.b.transpose(-1, -2) if side == 'b' else call.a
        if weight.dim() != 2:
            return None
        # On the left its outputs are rows of the product, and a bias is of columns.
        made = self._weight(module, weight, call.bias if side == 'b' else None)
        if made is None:
            return None
        added = call.bias is not None if side == 'a' else made.pop('added')
        made.pop('added', None)
        return {'kind': 'linear', 'side': side, 'added': added, 'layer': made}

    def _convolution(self, module: nn.Module | None, name: str, args: tuple,
                     kwargs: dict[str, Any]) -> Row:
        given = bound(('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'), args,
                      kwargs, bias=None, stride=1, padding=0, dilation=1, groups=1)
        if not self.dependence.on_input(given['input']) \
                and not self.dependence.on_input(given['weight']):
            return PASS
        if self.dependence.on_input(given['weight']):
            raise NotOpened('a convolution whose weight is computed from the input')
        line = name == 'conv1d'  # of height 1
        weight = given['weight'].unsqueeze(2) if line else given['weight']
        made = self._weight(module, weight, given['bias'])
        if made is None:
            raise NotOpened('a convolution whose weight is computed, or no parameter')
        if name == 'conv3d' or given['input'].dim() != (3 if line else 4):
            raise NotOpened('kind of layer that is not supported')
        options = {key: given[key] if isinstance(given[key], str) else
                   [still, _pair(given[key])[-1]] if line else list(_pair(given[key]))
                   for key, still in (('stride', 1), ('padding', 0), ('dilation', 1))}
        options['groups'] = given['groups']
        return {'kind': 'convolution', 'added': made.pop('added'),
                'layer': {**made, 'options': options}}

    def _weight(self, module: nn.Module | None, weight: Tensor, bias: Tensor | None,
                ) -> dict[str, Any] | None:
        """Whose parameter a weight is: of the module itself, or of a layer inside.

        Returns:
            ``{'weight', 'bias', 'added'}`` or ``{'inner', 'added'}``; ``added`` where the bias is
            computed and must be added to what the layer gives. ``None`` for what is no parameter.
        """
        holders = self._holders.get(storage_of(weight), [])
        if not holders:
            return None
        own = self._own_view(module, weight)
        if own is not None:
            bias_view = None if bias is None else self._own_view(module, bias)
            return {'weight': own.row(), 'bias': None if bias_view is None else bias_view.row(),
                    'added': bias is not None and bias_view is None}
        name, holder, _, parameter = holders[0]
        inner = next((inner for inner, one in module.named_modules() if one is holder), None) \
            if module is not None else None
        if len(holders) > 1:
            raise NotOpened(f"the weight of '{name}', which is shared by several modules")
        if not inner or not (is_replaced(holder) or isinstance(holder, nn.Linear)):
            raise NotOpened(f"a weight of another module, '{name}'")
        if not _is_same(weight, parameter) or holder.weight is not parameter:
            raise NotOpened(f"a part of the weight of '{name}', or in another form")
        if holder.bias is not None and (bias is None or not _is_same(bias, holder.bias)):
            raise NotOpened(f"the weight of '{name}' with another bias than its own")
        return {'inner': inner, 'added': bias is not None and holder.bias is None}

    def _own_view(self, module: nn.Module | None, tensor: Tensor) -> View | None:
        """The part of a module's own parameter that a tensor is, if it is one."""
        holders = self._holders.get(storage_of(tensor), [])
        if len(holders) != 1 or holders[0][1] is not module or tensor.dtype != holders[0][3].dtype:
            return None
        return View.of(holders[0][2], holders[0][3], tensor)


def _is_same(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor is a parameter whole, as it is."""
    return storage_of(tensor) == storage_of(parameter) and tensor.shape == parameter.shape \
        and tensor.stride() == parameter.stride() \
        and tensor.storage_offset() == parameter.storage_offset()


def _check_layout(tensor: Tensor) -> None:
    if odd_layout(tensor):
        raise NotOpened(f'a {odd_layout(tensor)} tensor')


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(int(one) for one in (
        value if len(value) == 2 else (*value, *value)))
