from ltune.data.prompts import Prompts, Question


def test_longest_first_keeps_the_order_of_equals_and_first_is_by_file():
    prompts = Prompts([Question(row, [1] * length, None) for row, length in enumerate([3, 5, 1, 5, 3])])
    assert [prompt.row for prompt in prompts.longest_first().prompts] == [1, 3, 0, 4, 2]
    assert [prompt.row for prompt in prompts.first(2).longest_first().prompts] == [1, 0]
    assert [prompt.row for prompt in prompts.of_rank(1, 2).prompts] == [1, 3]
