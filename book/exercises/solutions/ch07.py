"""Chapter 7: the state of one tile of keys, written so that states merge. A solution, and answers that are wrong, by what is wrong with them."""

import torch


def tile_state(scores, values):
    peak = scores.max()
    weights = torch.exp(scores - peak)
    return peak, weights.sum(), weights @ values


def divided(scores, values):
    peak = scores.max()
    weights = torch.exp(scores - peak)
    return peak, weights.sum(), weights @ values / weights.sum()


def without_peak(scores, values):
    weights = torch.exp(scores)
    return scores.max(), weights.sum(), weights @ values


WRONG = {
    "acc is already divided by the norm": divided,
    "no peak is subtracted": without_peak,
}
