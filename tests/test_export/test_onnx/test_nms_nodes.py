"""Suppression appended to a graph, against the definition."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mmbitsplit.export.onnx.nms_nodes import append_nms


def suppressed(boxes, scores, threshold):
    """Greedy suppression by its definition; returns kept places, best first."""
    def area(box):
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    def overlap(a, b):
        inside = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
        return inside / (area(a) + area(b) - inside)

    kept = []
    for place in np.argsort(-scores, kind='stable'):
        if scores[place] > 0 and all(overlap(boxes[place], boxes[other]) <= threshold
                                     for other in kept):
            kept.append(place)
    return kept


def candidates(batch, count):
    infos = [helper.make_tensor_value_info(name, kind, [batch, count, *rest]) for name, kind, rest
             in (('a', TensorProto.FLOAT, [4]), ('b', TensorProto.FLOAT, [4]),
                 ('c', TensorProto.FLOAT, []), ('labels_in', TensorProto.INT64, []))]
    names = ['boxes', 'apart', 'scores', 'classes']
    outputs = [helper.make_tensor_value_info(name, info.type.tensor_type.elem_type,
                                             [batch, count, *([4] if index < 2 else [])])
               for index, (name, info) in enumerate(zip(names, infos))]
    nodes = [helper.make_node('Identity', [info.name], [name])
             for info, name in zip(infos, names)]
    return helper.make_model(helper.make_graph(nodes, 'g', infos, outputs), ir_version=8,
                             opset_imports=[helper.make_opsetid('', 18)])


@pytest.mark.parametrize('most', [4, 30, 1000])
def test_it_keeps_what_the_definition_keeps(most):
    chance = np.random.default_rng(most)
    corner, size = chance.uniform(0, 50, (2, 40, 2)), chance.uniform(5, 30, (2, 40, 2))
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    labels = chance.integers(0, 3, (2, 40))
    scores = np.where(chance.random((2, 40)) < 0.2, 0, chance.random((2, 40))).astype(np.float32)
    apart = boxes + (100 * labels[..., None]).astype(np.float32)
    model = candidates(2, 40)
    append_nms(model, 0.4, most)
    onnx.checker.check_model(model, full_check=True)
    dets, found = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {'a': boxes, 'b': apart, 'c': scores, 'labels_in': labels})
    assert dets.shape == (2, min(most, 40), 5)
    for number in range(2):
        kept = suppressed(apart[number], scores[number], 0.4)[:most]
        assert len(kept) < 40 and (dets[number, len(kept):, 4] == 0).all()
        np.testing.assert_array_equal(dets[number, :len(kept), :4], boxes[number][kept])
        np.testing.assert_array_equal(dets[number, :len(kept), 4], scores[number][kept])
        np.testing.assert_array_equal(found[number, :len(kept)], labels[number][kept])
