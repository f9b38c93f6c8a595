"""Chapter 9: tokens of a prompt that the prefix cache holds. A solution, and answers that are wrong, by what is wrong with them."""


def found_tokens(first, second, block):
    common = 0
    shortest = min(len(first), len(second))
    while common < shortest and first[common] == second[common]:
        common += 1
    return min(common, len(second) - 1) // block * block


def whole_prompt(first, second, block):
    common = 0
    shortest = min(len(first), len(second))
    while common < shortest and first[common] == second[common]:
        common += 1
    return common // block * block


def parts_of_blocks(first, second, block):
    common = 0
    shortest = min(len(first), len(second))
    while common < shortest and first[common] == second[common]:
        common += 1
    return min(common, len(second) - 1)


WRONG = {
    "the whole prompt can be found": whole_prompt,
    "parts of a block are found": parts_of_blocks,
}
