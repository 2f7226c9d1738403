"""Appends non-maximum suppression to a graph of candidates: detections as mmdeploy has them."""

from typing import Any

from mmbitsplit.export.onnx.requirements import need

DETECTIONS, LABELS = 'dets', 'labels'
# What runtimes of mmdeploy 1.3.1 read (onnxruntime 1.15). Nodes of our int8 files mean the same in
# both; 4-bit integers are from 21 on.
OLD_OPSET, OLD_IR = 18, 8


def append_nms(model: Any, threshold: float, most: int) -> None:
    """Puts suppression and a choice of the best behind the candidates, in place.

    Outputs become ``dets`` (N, K, 5) float32, boxes and scores with the best first, and ``labels``
    (N, K) int64; K is ``most``, or the number of candidates where that is less. Rows with score 0
    hold nothing.

    Args:
        model: ``onnx.ModelProto`` whose outputs are, in this order, ``boxes`` (N, B, 4), ``apart``
            (N, B, 4: those of different classes moved apart, so that they do not suppress each
            other), ``scores`` (N, B) and ``labels`` (N, B) int64.
        threshold: Overlap (IoU) above which the lower score goes.
        most: Detections an image.
    """
    onnx = need('onnx')
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = model.graph
    boxes, apart, scores, labels = (output.name for output in graph.output)
    count = graph.output[2].type.tensor_type.shape.dim[1].dim_value
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    kept = min(most, count)

    def constant(name: str, kind: int, shape: list[int], values: list[Any]) -> str:
        graph.initializer.append(helper.make_tensor(f'nms_{name}', kind, shape, values))
        return f'nms_{name}'

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        outputs = [name if name in (DETECTIONS, LABELS) else f'nms_{name}' for name in outputs]
        graph.node.append(helper.make_node(kind, inputs, outputs, name=f'nms_{outputs[0]}',
                                           **attributes))

    one, last = constant('one', kinds.INT64, [1], [1]), constant('last', kinds.INT64, [1], [-1])
    node('Unsqueeze', [scores, one], ['class_scores'])
    node('NonMaxSuppression', [
        apart, 'nms_class_scores', constant('most', kinds.INT64, [1], [kept]),
        constant('threshold', kinds.FLOAT, [1], [threshold]),
        constant('floor', kinds.FLOAT, [1], [0.0])], ['selected'])  # (S, 3): image, class, box
    # Scores of what was selected stay, all others become 0.
    node('Gather', ['nms_selected', constant('columns', kinds.INT64, [2], [0, 2])], ['places'],
         axis=1)
    node('GatherND', [scores, 'nms_places'], ['selected_scores'])
    node('Sub', [scores, scores], ['zeros'])
    node('ScatterND', ['nms_zeros', 'nms_places', 'nms_selected_scores'], ['kept_scores'])
    node('TopK', ['nms_kept_scores', constant('kept', kinds.INT64, [1], [kept])],
         ['best', 'index'], axis=1)
    node('Unsqueeze', ['nms_index', last], ['index_nd'])
    node('Unsqueeze', ['nms_best', last], ['best_column'])
    node('GatherND', [boxes, 'nms_index_nd'], ['best_boxes'], batch_dims=1)
    node('Concat', ['nms_best_boxes', 'nms_best_column'], [DETECTIONS], axis=-1)
    node('GatherElements', [labels, 'nms_index'], [LABELS], axis=1)
    first = batch.dim_param or batch.dim_value
    del graph.output[:]
    graph.output.extend([
        helper.make_tensor_value_info(DETECTIONS, kinds.FLOAT, [first, kept, 5]),
        helper.make_tensor_value_info(LABELS, kinds.INT64, [first, kept])])


def lower_opset(model: Any) -> None:
    """Declares a file of int8 for older runtimes; the checker says if a node is too new."""
    for entry in model.opset_import:
        if entry.domain in ('', 'ai.onnx'):
            entry.version = OLD_OPSET
    model.ir_version = OLD_IR


def rename_output(model: Any, name: str) -> None:
    """Gives the only output another name."""
    output, = model.graph.output
    before = output.name
    for node in model.graph.node:
        node.output[:] = [name if value == before else value for value in node.output]
        node.input[:] = [name if value == before else value for value in node.input]
    output.name = name
