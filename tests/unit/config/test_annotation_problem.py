"""A problem as one line, whatever the annotation holds."""

from sidestep.config.annotation_problem import MAX_SHOWN, AnnotationProblem
from sidestep.model.condition import ConditionType


def test_the_line_names_annotation_value_subject_and_reason():
    problem = AnnotationProblem("a.example/x", "value", "is bad", "pod shop/orders-1")
    assert problem.text == "annotation a.example/x 'value' of pod shop/orders-1: is bad"
    assert problem.condition().type is ConditionType.ANNOTATION_INVALID
    assert (problem.condition().subject, problem.condition().text) == ("pod shop/orders-1", problem.text)


def test_the_line_names_the_object_that_carries_the_annotation():
    inherited = AnnotationProblem("x", "v", "is bad", "pod shop/orders-1", "deployment shop/orders")
    assert "(set on deployment shop/orders)" in inherited.text
    own = AnnotationProblem("x", "v", "is bad", "pod shop/orders-1", "pod shop/orders-1")
    assert "set on" not in own.text


def test_long_and_unprintable_texts_are_cut_and_escaped():
    text = AnnotationProblem("n" * 500, "v" * 500, "is bad", "node n1").text
    assert len(text) < 2 * MAX_SHOWN + 60
    assert text.count("…") == 2
    assert AnnotationProblem("\x1b[2J", "\n", "is bad", "node n1").text.isprintable()
