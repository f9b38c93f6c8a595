"""Chapter 1: tokens that a generation without a cache computes. A solution, and answers that are wrong, by what is wrong with them."""


def computed_tokens(prompt, answer):
    return answer * prompt + answer * (answer - 1) // 2


def once(prompt, answer):
    return prompt + answer - 1


def last_as_well(prompt, answer):
    return answer * prompt + answer * (answer + 1) // 2


WRONG = {
    "each token once, as with a cache": once,
    "the last token computed as well": last_as_well,
}
