"""Chapter 3: tokens that padded static batches compute. A solution, and answers that are wrong, by what is wrong with them."""


def rectangle_tokens(prompts, answers, slots):
    total = 0
    for i in range(0, len(prompts), slots):
        batch, longest = prompts[i : i + slots], max(answers[i : i + slots])
        total += len(batch) * (max(batch) + longest - 1)
    return total


def without_ended_rows(prompts, answers, slots):
    total = 0
    for i in range(0, len(prompts), slots):
        batch = prompts[i : i + slots]
        total += len(batch) * max(batch)
        total += sum(n - 1 for n in answers[i : i + slots])
    return total


def full_batches(prompts, answers, slots):
    total = 0
    for i in range(0, len(prompts), slots):
        longest = max(answers[i : i + slots])
        total += slots * (max(prompts[i : i + slots]) + longest - 1)
    return total


WRONG = {
    "rows that have ended cost nothing": without_ended_rows,
    "the last batch as large as the others": full_batches,
}
