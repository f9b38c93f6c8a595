"""Sentences that follow from measured values: a vocabulary, gates for experiments, verdicts on predictions.

A chapter never writes "faster", "about", "most", "as predicted" or "free" by hand. Such a clause comes from a function
that takes the measured values and returns words; the parts are imported by name:

    values        Measured (a number, a Timing, repeats, None), quantity, times, percent; cell, column, ends of a Series
    vocabulary    compare, versus_prediction, versus_bound, share; each returns a Finding (text, kind, ratio, direction)
    curves        trend, scaling, threshold, crossing, ordering
    predictions   Prediction, predictions_table, tally
    gates         Gate: the checks of one experiment
    experiments   Experiments: the gates of one chapter
    shown         Shown: the run that a page draws and quotes

Beside them, one package per chapter. Its module chNN_* has the chapter's predictions and collects all its sentences,
which are tested without running the chapter.

Bind a sentence. Write it in the chapter's module, or in one for its topic (`kv_by_length`, `schedulers`), as a function
of a run, and branch on `kind`, never on a number that the sentence does not print. A run answers `run["series"]` with a
Series or None, so that the same function reads this run and a recorded one. Collect all of them in `render(run)`, which
tests/bench/test_findings_chapters.py calls with every recorded run and with perturbed copies:

    def speed(run):                                          # lib/bench/findings/kv_cache/ch02_kv_cache.py
        series = run["latency"]
        found = compare(cell(series, "cache", -1), cell(series, "no_cache", -1), "the cache", "the plain loop")
        why = " Each step reads what the last one kept." if found.direction < 0 else ""
        return {"speed_finding": found.sentence + why}

    glue_all(ch02.speed(shown))                              # in the chapter; the prose has {glue:text}`speed_finding`

A cause stands behind a measured condition: a sentence that explains a difference is not printed where there is none.
Glued text is plain: no code, no bold. `say(text)` shows Markdown where a sentence needs them.

Gate an experiment. After measuring and before drawing:

    experiments = Experiments("02_kv_cache", device)         # once, before the first measurement
    gate = experiments.gate("latency by prompt")             # right after its measurement; closed at smoke scale
    gate.repeats([*ours, *theirs])                           # at least 2 repeats that agree within 25 %
    gate.machine(roofline, experiments.roofline)             # ceilings within 1.25 times of the recorded run's
    gate.queue_formed(most_waiting); gate.limit_reached(used, limit, "seats"); gate.enough(n, 96, "requests")
    shown = experiments.pick(gate, record)                   # this run, or the recorded run of the same hardware
    s = shown["latency"]
    lines(ax, x=s["prompt"], y={"cache": s["cache"]}, label=shown.label)
    caution(ax, shown.note)

`experiments.gate` checks by itself what other programs used since the gate before it (`Gate.quiet`; a call with a more
exact load replaces that). Sentences that need several experiments take `experiments.pick_for_all(gates, record)`. The
record keeps all gates, with their reasons and their load.

The first page of the chapter has {glue:text}`experiments_shown`; the last cell fills it:
`glue("experiments_shown", experiments.summary())`. MyST-NB runs the notebook before it renders, so the order is free.
Where a closed gate is no matter of a sentence (a counted result), use no gate.

List predictions. `predictions(run)` in the chapter's module returns a list of Prediction(claim, predicted, measured,
why, unit): numbers, or a shape ("falls") against `trend(...)`. The chapter ends with `predictions_table(...)` and
`glue("predictions_tally", tally(...))`. `why` is shown for a deviation only where a measurement supports it.

Compare in turns (`measure_in_turns`), and take the ceilings from `machine_roofline`, which all chapters share.

Introduced in chapter 1.
"""
