from headshotkit.families.expressions import with_expression
from headshotkit.training.trained import usual_expression


def test_an_expression_is_usual_above_three_quarters_of_the_captions():
    smiling, other = "photo of ohwx woman, smiling", "photo of ohwx woman, soft light"
    assert usual_expression([smiling] * 12 + [other] * 4) == ""
    assert usual_expression([smiling] * 13 + [other] * 4) == "smiling"
    assert usual_expression(["photo of ohwx man, neutral expression"] * 3) == "neutral expression"
    assert usual_expression([]) == ""


def test_only_a_prompt_that_names_another_expression_changes():
    assert with_expression("photo of a man, looking left", "smiling") == "photo of a man, looking left"
    assert with_expression("photo of a man, smiling", "smiling") == "photo of a man, smiling"
    assert with_expression("photo of a man, neutral expression", "") == "photo of a man, neutral expression"
