"""Misspelled names are answered with what they may have meant."""

from mmbitsplit.spelling import close_names, did_you_mean, nearest


def test_nearest_without_a_near_name_lists_all():
    assert nearest('zzz', ['beta', 'alpha']) == 'Allowed: alpha, beta'
    assert nearest('alhpa', ['beta', 'alpha']) == "did you mean 'alpha'? Allowed: alpha, beta"


def test_near_names_are_the_nearest_first_and_as_many_as_asked_for():
    known = ['resnet50', 'resnet18', 'retinanet', 'vgg16']
    assert close_names('resnet5', known) == ['resnet50']
    assert close_names('resnet5', known, most=2) == ['resnet50', 'resnet18']
    assert close_names('resnet5', known, alike=0.99) == []
    assert did_you_mean('resnet5', known) == "did you mean 'resnet50'?"
    assert did_you_mean('xyz', known) == ''
    assert close_names('4', [4, 8]) == ['4']
