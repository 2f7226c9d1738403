"""Finds the scales of residual streams, on the float model, before layers are solved."""

from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.layers.streams import round_stream
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.stream_pass import sample_streams
from mmbitsplit.solving.output_scales import at_widths, stream_scale


def settle_streams(prepared: PreparedModel, forwards: Forwards, seed: int) -> None:
    """Rounds all planned streams from now on; runs each batch once where there are any.

    As in the source, their scales are found on the float model, all at once.

    Source: Wei et al., QDrop, ICLR 2022, as its code initialises activation quantizers.

    Args:
        prepared: The model, its layers in float.
        forwards: Of it.
        seed: Of the calibration.
    """
    # Where a layer gives the stream, it is the layer's own output, found when it is solved.
    streams = [stream for stream in prepared.plan.streams if not stream.on_layer]
    if not streams:
        return
    samples = sample_streams([stream.name for stream in streams], forwards, seed)
    plans = {layer.name: layer for layer in prepared.plan.layers}
    for stream in streams:
        how = plans[stream.readers[0]].activation if stream.readers else None
        widest, *narrower = at_widths(
            lambda bits, of=samples[stream.name], how=how: stream_scale(of, bits, how),
            stream.widths or (stream.num_bits,))
        round_stream(prepared.model.get_submodule(stream.name),
                     *forwards.team.from_first((widest, narrower)))
    forwards.state.modules.renew(
        prepared.model.get_submodule(stream.name) for stream in streams)


def check_method(prepared: PreparedModel, method: Method) -> None:
    """Raises ``ValueError`` for a method that moves scales which layers share with others."""
    if prepared.plan.streams and method.refines:
        name = type(method).__name__
        raise ValueError(f'{name} moves the input scales of layers one by one, which layers that '
                         'read a quantized residual stream share with it. Give '
                         f"activation.placement='inputs' with {name}.")
    tied = [plan for plan in prepared.plan.layers if plan.codes_of]
    if tied and method.refines:
        raise ValueError(f"{type(method).__name__} moves the scales of layer '{tied[0].name}', "
                         f"whose weight is that of embedding '{tied[0].codes_of}' and keeps its "
                         "scales. Take another method, or leave the embedding in float with "
                         f"overrides=[dict(match='{tied[0].codes_of}', skip=True)].")


def open_stream_warnings(prepared: PreparedModel) -> list[str]:
    """Says where a skip connection stays float though it was to be quantized."""
    names = prepared.plan.open_streams
    if not names:
        return []
    return [f'{len(names)} tensor(s) that a layer and something else read stay float for the other '
            f'readers, because no module gives them by itself (read by {", ".join(names[:4])}'
            f'{", ..." if len(names) > 4 else ""}).']
