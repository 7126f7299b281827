# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Compare: is it better, or was it lucky?
#
# Every notebook ends with a number. This one asks what two numbers say about each other: here, across seeds, and in papers.
#
# | | |
# |---|---|
# | **Time** | about twenty seconds if 01, 07 and 08 have run; otherwise as long as they take (profile `demo`, two CPU cores) |
# | **Needs** | nothing but this kit; no GPU, no downloads. Photographs need true masks, since scores are compared |
# | **Papers** | the five methods of this course; Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021 ([arXiv:2103.03098](https://arxiv.org/abs/2103.03098)) |
# | **Before** | [01 CAM](01_cam.ipynb), [07 Pseudo masks](07_pseudo_masks.ipynb), [08 Segmentation](08_segmentation.ipynb) |
#
# Afterwards you will be able to
#
# 1. compare two methods over seeds: mean, standard deviation, and a 95 % interval of the paired difference;
# 2. take a score apart, by threshold, rule, stage, class and group of images, and say what its average hides;
# 3. read a results table of a paper and say which of its numbers may be compared.

# %% [markdown]
# ## Parameters
#
# Everything that can be turned from outside stands in the next cell, and papermill replaces it when the notebook
# runs headless: `papermill 09_compare.ipynb out.ipynb -p profile laptop -p data_root FOLDER -k python3`.

# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")  # smoke | demo | laptop | paper
dataset = ""  # name of the data set; empty: the profile's own
data_root = ""  # folder in VOC layout; empty: toy scenes, drawn on the spot
runs_root = ""  # where results go; empty: runs/ of the project
seed = 0  # of every random draw
overrides = {}  # departures from the profile, {"cam.epochs": 3}
method = "cam"  # whose run is looked at

# %% [markdown]
# ## Set-up
#
# The run that we look at is the one that 01, 07 and 08 have computed: the same settings, the same data, the same seed, so the
# same folder.

# %% tags=["nbval-ignore-output"]
import inspect
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

from data_prep.ready import ready
from wsss_lib import choices, localize, results, runs, stages, viz, widgets
from wsss_lib.data import read_mask
from wsss_lib.metrics import OVER, ConfusionMatrix, ThresholdSweep, mean_std, paired_interval
from wsss_lib.protocols import MASKS, SEEDS
from wsss_lib.runs import Run
from wsss_lib.settings import load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
run = Run(settings, folder, method=method, seed=seed, root=runs_root)
folder.require_masks(run.ids("seed") + run.ids("val"), "scores cannot be compared without them")
print(
    f"torch {torch.__version__}, device {stages.pick_device(settings.machine.device)}, profile {profile}, seed {seed}"
)

# %% [markdown]
# ## The idea in one figure
#
# Train the same method twice with two seeds, and you get two scores. The network starts from other random weights, sees the
# images in another order, crops them elsewhere. The scores differ by half a point or by two points, and nothing has improved.
#
# So **a difference between two methods is worth only what it is against the spread of the seeds**. The figure shows two
# comparisons over three seeds. Their *means* are the same: 45.0 against 46.5. These numbers are made up, to show the idea.

# %%
made_up = {
    "a steady gain": ([44.0, 45.0, 46.0], [45.6, 46.4, 47.5]),
    "a lucky gain": ([44.0, 45.0, 46.0], [47.6, 44.4, 47.5]),
}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.7), layout="constrained", sharey=True)
for axis, (name, (old, new)) in zip(axes, made_up.items(), strict=True):
    for a, b in zip(old, new, strict=True):
        axis.plot([0, 1], [a, b], color="grey", linewidth=1, zorder=0)
    axis.scatter([0] * 3, old, color=viz.COLORS[0], s=45)
    axis.scatter([1] * 3, new, color=viz.COLORS[1], marker="s", s=45)
    gain, low, high = paired_interval(new, old)
    axis.set(
        xticks=[0, 1],
        xticklabels=["baseline", "new method"],
        xlim=(-0.5, 1.5),
        title=f"{name}: {gain:+.1f}, between {low:.1f} and {high:+.1f}",
    )
axes[0].set_ylabel("mIoU (%)")
sns.despine(figure)
viz.show(
    figure,
    "Two comparisons with the same means (made up). A line joins two runs of one seed. Only on the left the interval leaves out zero.",
)

# %% [markdown]
# On the left every seed gains about as much. On the right one seed gains much, one loses, one gains a little. The means
# cannot tell the two cases apart, and a table with one number a method cannot either.
#
# Where does the spread come from, if data and code are the same? From every draw that a training makes: the first weights, the
# order of images, the crops and mirrorings, on a GPU even the order in which numbers are added. A seed fixes all of them at once.
# It makes *one* training repeatable, but it does not say how the next one would have turned out.

# %% [markdown]
# ## The smallest implementation
#
# We compute the interval of the title line by hand, in three steps, for the steady gain.
#
# **Step 1, the differences.** Run $i$ of both methods had the same seed: the same data, the same order of images. What luck they
# share cancels in the difference $d_i = b_i - a_i$. That is why comparisons should be *paired*.

# %%
old, new = (np.array(v) for v in made_up["a steady gain"])
differences = new - old
print("differences", differences.round(2).tolist())

# %% [markdown]
# **Step 2, mean and standard deviation.** The standard deviation over seeds divides by $n-1$, not by $n$: the mean was
# taken from the same few numbers, so it lies too close to them.

# %%
n = len(differences)
mean = differences.sum() / n
std = np.sqrt(((differences - mean) ** 2).sum() / (n - 1))
print(f"gain {mean:.2f}, standard deviation {std:.2f} over {n} seeds")

# %% [markdown]
# **Step 3, the interval.** The mean of $n$ numbers varies less than one number does, by a factor of $\sqrt n$. And since
# the standard deviation itself is only guessed from $n$ numbers, the familiar factor 1.96 is too small. Student's $t$ says
# how much larger it must be:
#
# $$\bar d \;\pm\; t_{n-1} \, \frac{s_d}{\sqrt n} \qquad t_2 = 4.303, \quad t_4 = 2.776, \quad t_9 = 2.262$$

# %%
half = 4.303 * std / np.sqrt(n)
print(f"gain {mean:.2f}, with 95 % confidence between {mean - half:.2f} and {mean + half:.2f}")

# %% [markdown]
# Is 4.303 really needed? We try it: draw three normal numbers whose true mean is 0, a hundred thousand times, and count how
# often the interval contains 0. It should be 95 of 100 times.

# %%
draws = np.random.default_rng(0).normal(size=(100_000, 3))
spread = draws.std(axis=1, ddof=1) / np.sqrt(3)
for factor in (1.96, 4.303):
    inside = (np.abs(draws.mean(axis=1)) < factor * spread).mean()
    print(f"mean ± {factor:5.3f} s/√3 contains the truth in {inside:.0%} of the cases")

# %% [markdown]
# ## The library does the same
#
# Two functions of `wsss_lib/metrics.py` are all that the tables of this kit need: `mean_std` for a cell of a table, and
# `paired_interval` for a comparison.

# %%
for function in (mean_std, paired_interval):
    print(inspect.getsource(function).split('"""')[2].strip("\n"), end="\n\n")

# %%
assert np.allclose(paired_interval(new, old), (mean, mean - half, mean + half))
assert mean_std(differences, scale=1) == f"{mean:.1f} ± {std:.1f}"
print("baseline", mean_std(old, scale=1), "| new", mean_std(new, scale=1), "| gain", mean_std(differences, scale=1))

# %% [markdown]
# Look at the line above. Baseline and new method overlap: 45.0 ± 1.0 and 46.5 ± 1.0. Nobody would be convinced. But seed by seed
# the gain is 1.5 ± 0.1, and that is convincing. Without pairing the information is lost:

# %%
apart = np.sqrt(old.var(ddof=1) / n + new.var(ddof=1) / n)
print(f"unpaired: {mean:.2f} ± {2.776 * apart:.2f}   paired: {mean:.2f} ± {half:.2f}")

# %% [markdown]
# ### How many seeds?
#
# Turn the dials: the true gain, the spread of the differences, the number of seeds. `luck` draws other seeds. How many seeds does
# it take until a gain of one point shows, at a spread of one point? (Without a running kernel you see the picture at the start.)


# %%
def draw_interval(true_gain, spread, seeds, luck):
    sample = true_gain + spread * np.random.default_rng(luck).normal(size=10)[:seeds]
    gain, low, high = paired_interval(sample, np.zeros(seeds))
    figure, axis = plt.subplots(figsize=(6.4, 1.7), layout="constrained")
    axis.axvline(0, color="grey", linestyle=":")
    axis.scatter(sample, np.full(seeds, 1.0), color=viz.COLORS[0], s=30, label="one seed")
    axis.errorbar(
        gain,
        0.4,
        xerr=[[gain - low], [high - gain]],
        color=viz.COLORS[1],
        marker="s",
        capsize=5,
        label="mean, 95 % interval",
    )
    verdict = "zero is outside" if low > 0 or high < 0 else "zero is inside: no gain is shown"
    axis.set(xlim=(-8, 10), ylim=(0, 1.5), yticks=[], xlabel="gain (points of mIoU)", title=verdict)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


explorer = widgets.explore(
    draw_interval,
    "The gains of single seeds (made up), and the interval that follows from them. With two seeds it is nearly useless.",
    true_gain=(0.0, 5.0, 0.5, 1.0),
    spread=(0.1, 3.0, 0.1, 1.0),
    seeds=(2, 10, 1, 3),
    luck=(0, 20, 1, 2),
)

# %% [markdown]
# The width of the interval, in standard deviations of a difference, for each number of seeds:

# %%
student = {k: paired_interval(np.arange(k), np.zeros(k)) for k in range(2, 11)}
width = {k: (high - mid) / np.arange(k).std(ddof=1) for k, (mid, low, high) in student.items()}
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.plot(list(width), list(width.values()), marker="o", color=viz.COLORS[0])
for k in (2, 3, 5, 10):
    axis.annotate(f"{width[k]:.1f}", (k, width[k]), (4, 5), textcoords="offset points", fontsize=8)
axis.set(xlabel="seeds", ylabel="half width (in std)", ylim=(0, 9.8))
sns.despine(figure)
viz.show(
    figure,
    "How far a gain is known: the half width of the 95 % interval. From 2 to 3 seeds helps most, 5 is a good habit.",
)

# %% [markdown]
# ## Compute, or load
#
# Now to real numbers. The last stage of the way is `val_masks`; asking for it asks for all stages before it. What is there
# already is loaded, so after 01, 07 and 08 this takes no time, and without them it takes as long as they do. What makes masks of
# the maps, `refine.how` says; if it names a network that learns affinities, three more stages lie on the way.

# %% tags=["nbval-ignore-output"]
segmentation = stages.segment_val(run)
pseudo_masks, cams, how = stages.make_pseudo_masks(run), stages.make_cams(run), settings.refine.how
learnt = []
if how in choices.AFFINITY_NETWORKS:
    learnt = [stages.make_affinity_labels(run), stages.train_affinity(run), stages.walk_cams(run)]
for stage in (stages.train_classifier(run), cams, *learnt, pseudo_masks, stages.train_segmentation(run), segmentation):
    print(f"{stage.path.relative_to(run.root).as_posix():58s} {stage.metrics['seconds']:7.1f} s")

# %% [markdown]
# All runs below the same root, whichever notebook made them, also those of other profiles and data sets: compare within a data set
# and a profile only. A row is a *pipeline*: the method, with what departs from its
# profile. Its seeds are gathered to mean ± standard deviation. With one seed there is no ±, and then **this table compares
# nothing yet**: `wsss run all -p seed=1` adds a seed.

# %% tags=["nbval-ignore-output"]
table = results.table(run.root)
table

# %% [markdown]
# ## A comparison with seeds
#
# Three seeds of each setting take longer than a lesson, so the next comparison was measured once and recorded, by the command in
# the first line of `results/context_bias.csv`. Plain CAM on toy scenes: does it matter whether objects stand on
# their own context in half of the scenes, or in nine of ten?

# %%
recorded = results.read("context_bias")
score = recorded.pivot(index="seed", columns="context_bias", values="seed_miou_fixed")
score.round(1)

# %% [markdown]
# Each row is a seed, and all scenes of a row are the same but for their context: a turned dial changes only what it is about
# (notebook 00). So the rows are pairs.

# %%
gains = {}
for bias in score.columns[1:]:
    gains[f"bias {bias:g}"] = paired_interval(score[bias], score[0.0])
figure, axis = plt.subplots(figsize=(6, 0.5 * len(gains) + 0.9), layout="constrained")
for row, (_, (gain, low, high)) in enumerate(gains.items()):
    axis.errorbar(gain, row, xerr=[[gain - low], [high - gain]], marker="s", color=viz.COLORS[0], capsize=4)
axis.axvline(0, color="grey", linestyle=":")
axis.set(
    yticks=range(len(gains)),
    yticklabels=list(gains),
    xlabel="seed mIoU against bias 0 (points)",
    ylim=(len(gains) - 0.5, -0.5),
)
sns.despine(figure)
viz.show(
    figure,
    "Paired differences of the seed mIoU to scenes without context bias: mean and 95 % interval over three recorded seeds.",
)

# %%
for name, (gain, low, high) in gains.items():
    verdict = "shown" if low > 0 or high < 0 else "not shown by three seeds"
    print(f"{name}: {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}: a difference is {verdict}")

# %% [markdown]
# "Not shown" is not "absent". It says that three seeds are too few to tell, and the honest next step is more seeds, not another
# threshold.
#
# One more trap stands in this figure: it shows *several* intervals. Each misses the truth in one of twenty cases; of twenty such
# comparisons one will show a difference where there is none. Who tries ten variants and reports the best owes the reader the
# number of tries.

# %% [markdown]
# ## Look: what the numbers stand for
#
# No table replaces looking. We take training images and ask where the refinement helped most, and where it did most harm,
# judged by the IoU of everything that is not background. True masks are opened to look and to measure.


# %%
def overlap(mask, truth):
    mask, truth = np.asarray(mask), np.asarray(truth)
    hit, either = (mask == truth) & (truth > 0), ((mask > 0) | (truth > 0)) & (truth < 255)
    return hit.sum() / max(either.sum(), 1)


def steps(image_id):
    """CAM, seed, pseudo mask and truth of a training image."""
    cam = localize.load_cam(cams.folder("cams") / f"{image_id}.npz", n_classes=folder.n_classes)
    pseudo = read_mask(pseudo_masks.folder("masks") / f"{image_id}.png")
    return cam.amax(0), localize.seed(cam, settings.localize.threshold), pseudo, folder.mask(image_id)


# %% tags=["nbval-ignore-output"]
seed_ids, val_ids = run.ids("seed"), run.ids("val")
gain = {}
for image_id in seed_ids[:150]:
    _, seed_mask, pseudo, truth = steps(image_id)
    gain[image_id] = 100 * (overlap(pseudo, truth) - overlap(seed_mask, truth))
ranked = sorted(gain, key=gain.get)
chosen = [ranked[-1], ranked[-2], ranked[len(ranked) // 2], ranked[1], ranked[0]]

rows = []
for image_id in chosen:
    image, (cam, *masks) = folder.image(image_id), steps(image_id)
    rows.append([image, viz.overlay_cam(image, cam), *[viz.overlay_mask(image, mask) for mask in masks]])
titles = ["image", "CAM", "seed", "pseudo mask", "true mask"]
figure = viz.grid(rows, titles, [f"{gain[i]:+.0f} points" for i in chosen], size=1.2)
viz.show(
    figure, f"From the image where the refinement ({how}) gained most to the one where it lost most, in points of IoU."
)

# %% [markdown]
# A dense CRF follows edges of the *image*, a walk follows affinities that were learnt from other seeds. Where the seed covers some of
# every part of the object, either can complete it. Where the seed lies on the context, or on a part with a hard edge around it, they
# complete that, or wipe a small seed out. So a refinement enlarges what is right and what is wrong alike, and its gain
# depends on the seeds: a reason to compare methods *behind* the refinement as well.
#
# And the end of the way: images of the val split, segmented without their labels. Beside the mask stands where it is wrong.

# %% tags=["nbval-ignore-output"]
found = {i: read_mask(segmentation.folder("masks") / f"{i}.png") for i in val_ids[:150]}
iou = {i: 100 * overlap(mask, folder.mask(i)) for i, mask in found.items()}
ranked = sorted(iou, key=iou.get, reverse=True)
chosen = [ranked[round(q * (len(ranked) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]

rows = []
for image_id in chosen:
    image, truth = folder.image(image_id), folder.mask(image_id).numpy()
    wrong = ((found[image_id] != truth) & (truth < 255)).astype(np.float32)
    rows.append([image, viz.overlay_mask(image, found[image_id]), viz.overlay_mask(image, truth), wrong])
titles = ["image", "segmentation", "true mask", "wrong pixels"]
figure = viz.grid(rows, titles, [f"IoU {iou[i]:.0f} %" for i in chosen], size=1.2)
viz.show(figure, "The val split from best to worst, at equal steps of the ranking. Wrong pixels are bright.")

# %% [markdown]
# ## Measure 1: stage by stage
#
# Where on the way is something won or lost? If the seeds are good and the pseudo masks are not, look at the refinement; if the pseudo
# masks are good and the segmentation is not, look at its training. A method that changes the seeds has to be followed to the
# end, because what comes later may undo its gain, or may have been able to repair the fault without it.
#
# One score a stage. Mind what each one is measured on: seeds and pseudo masks on **training** images, with the image's label
# known; the segmentation on **val** images, without. The last bar may therefore be lower or higher than the one before it
# and say nothing about progress. Compare a stage with the *same stage* of another run.

# %% tags=["nbval-ignore-output"]
seed_score, mask_score, val_score = cams.metrics["seed"], pseudo_masks.metrics["mask"], segmentation.metrics["mask"]
walked = learnt[-1].metrics["seed"] if learnt else {}
way = {
    "seed, fixed threshold (train)": seed_score["fixed"]["miou"],
    "seed, best threshold (train)": seed_score["best"]["miou"],
    **{f"walked seed, {name} threshold (train)": walked[name]["miou"] for name in ("fixed", "best") if walked},
    "pseudo mask (train)": mask_score["miou"],
    "segmentation (val)": val_score["miou"],
}
figure = viz.bars({name: 100 * v for name, v in way.items()}, "mIoU (%)", width=6.5)
viz.show(figure, f"The stages of this run, {method} on {folder.name} data. The last bar is measured on other images.")
print(
    "classes in each mean:",
    len(seed_score["fixed"]["miou_classes"]),
    len(mask_score["miou_classes"]),
    len(val_score["miou_classes"]),
)

# %% [markdown]
# ## Measure 2: how much the best threshold flatters
#
# A seed needs a background threshold. The *fixed* one is a setting, there before the run. The *best* one is read off the
# sweep below, and the sweep is computed **with** true masks: the very thing that this setting claims not to have.

# %% tags=["nbval-ignore-output"]
sweep, fixed, best = seed_score["sweep"], seed_score["fixed"], seed_score["best"]
percent = [np.nan if v is None else 100 * v for v in sweep["miou"]]
viz.show(
    viz.sweep(sweep["threshold"], {method: percent}, fixed=fixed["threshold"]),
    "Seed mIoU over the threshold: the dot is chosen with true masks, the dotted line without.",
)
for name, at in {"fixed": fixed, "best": best}.items():
    print(f"{name:5s} threshold {at['threshold']:.2f}: {100 * at['miou']:.1f} %")
print(f"the gift: {100 * (best['miou'] - fixed['miou']):.1f} points")

# %% [markdown]
# Is that *overfitting*? We test it: choose the threshold on one half of the images and use it on the other half.

# %% tags=["nbval-ignore-output"]
halves = [ThresholdSweep(folder.n_classes + 1) for _ in range(2)]
for i, image_id in enumerate(seed_ids[:300]):
    cam = localize.load_cam(cams.folder("cams") / f"{image_id}.npz", n_classes=folder.n_classes)
    halves[i % 2].update(folder.mask(image_id), cam)
classes = stages.scored_classes(run)
for own, other in (halves, halves[::-1]):
    borrowed, _ = other.best(classes)
    _, top = own.best(classes)
    print(
        f"with its own threshold {100 * top:.1f} %, with that of the other half {100 * own.at(borrowed).miou(classes):.1f} %"
    )

# %% [markdown]
# The threshold carries over nearly unharmed: one number cannot overfit hundreds of images. The gift is **information**, not
# overfitting. A few hundred true masks went into that one number, and someone who has only labels would not have them.
#
# It also hides differences. A method that moves all maps up or down looks no better at its own best threshold, and much better
# or worse at a fixed one. So this kit reports both, always apart, and compares like with like.

# %% [markdown]
# ## The same maps under ten rules
#
# A fixed threshold or the best one: that is only the coarsest difference between two scripts. Every repository has a rule of its own
# to make *one number* of a folder of maps, and papers seldom print the rule. What does the rule alone do? The stage `cams` has scored the
# **same maps** of this run as each of them would. The rules stand in `wsss_lib.protocols`, each with the files that it was read from, and
# [docs/evaluation.md](../docs/evaluation.md) explains them one by one.
#
# Nothing was trained for the next table, and no map was touched. Some repositories share a rule and so a line.

# %% tags=["nbval-ignore-output"]
scored = seed_score.get("protocols", {})
own = {"kit": (settings.localize.threshold,), "kit_best": tuple(sweep["threshold"])}
rules = {name: replace(rule, sweep=own.get(name, rule.sweep)) for name, rule in SEEDS.items() if name in scored}
means = {"present": "in truth or prediction", "all": "all, absent ones as 0", "truth": "in the truth"}
lines = {}
for name, rule in rules.items():
    ts, end = rule.thresholds, "up to the first that is no better" if rule.first_drop else "the best"
    words = f"{ts[0]:.2f}, fixed" if len(ts) == 1 else f"{ts[0]:.2f} to {ts[-1]:.2f}, {end}"
    found = round(scored[name]["threshold"], 2), round(100 * scored[name]["miou"], 1)
    lines.setdefault((words, len(ts) > 1, means[rule.over], *found), []).append(name)
columns = ["threshold", "chosen WITH masks", "classes in the mean", "it takes", "mIoU (%)"]
if not scored:
    stale = cams.path.relative_to(run.root).as_posix()
    print(f"An earlier version scored these maps, by its own rule only. Remove {stale} and run this notebook again.")
pd.DataFrame(list(lines), index=[", ".join(names) for names in lines.values()], columns=columns)

# %% tags=["nbval-ignore-output"]
if scored:
    figure = viz.bars({", ".join(names): line[-1] for line, names in lines.items()}, "seed mIoU (%)", width=6.5)
    for bar, line in zip(figure.axes[0].patches, lines, strict=True):
        bar.set_color(viz.COLORS[1 if line[1] else 0])
    viz.show(
        figure, "One folder of maps, scored by each rule. The second colour: the threshold was chosen with true masks."
    )
    print(f"{len(lines)} rules; from the lowest to the highest {np.ptp([line[-1] for line in lines]):.1f} points")

# %% [markdown]
# Read the span in the last line against the gains that you know. The maps are the same in all rows, so all of it is the script. What
# differs:
#
# - **Fixed or swept.** One threshold set beforehand, or the best of up to a hundred, chosen *with* the masks that it is scored on.
# - **The window.** AdvCAM's sweep tries 20 thresholds, SEAM's 60. What is best outside the window cannot be found.
# - **Halved maps.** CPN's script divides its maps by two and sweeps from 0.20 to 0.59. Of maps in [0, 1] that is 0.40 to 1.18:
#   nothing below 0.40 is ever tried, and everything from 1 on is background alone.
# - **The first drop.** MCTformer's loop starts at 0 and ends at the first threshold that is no better than the one before it: a
#   *local* maximum. On a curve with a bump or a step it stops there.
#
# The next figure draws each window below the curve of this run's maps.

# %% tags=["nbval-ignore-output"]
if scored:
    figure, (top, low) = plt.subplots(
        2, 1, figsize=(6.5, 4.6), layout="constrained", sharex=True, height_ratios=[1, 1.4]
    )
    top.plot(sweep["threshold"], percent, color="grey")
    top.set(ylabel="seed mIoU (%)")
    for row, (line, names) in enumerate(lines.items()):
        ts = [t for t in rules[names[0]].thresholds if t <= 1]
        low.plot([ts[0], ts[-1]], [row, row], color="lightgrey", linewidth=7, solid_capstyle="butt")
        low.scatter(line[3], row, color=viz.COLORS[1 if line[1] else 0], zorder=3)
    low.set(xlabel="background threshold, of maps in [0, 1]", yticks=range(len(lines)), ylim=(len(lines) - 0.5, -0.5))
    low.set_yticklabels([", ".join(names) for names in lines.values()], fontsize=8)
    sns.despine(figure)
    viz.show(
        figure,
        "Where each rule looks (grey) and what it takes (dot), below the curve of this run by the kit's own mean.",
    )

# %% [markdown]
# The fifth difference is in the **mean**: what is the IoU of a class that is not there? Four classes by hand: class 0 is half right, class
# 1 all right, class 2 was only predicted, class 3 does not occur at all.

# %%
tiny = ConfusionMatrix(4)
tiny.update(np.array([[0, 0, 1, 255]]), np.array([[0, 2, 1, 0]]))
print("IoU of each class:", tiny.iou().round(2).tolist())
for over in OVER:
    print(f"{means[over]:24s} mIoU {tiny.miou(over=over):.3f}")

# %% [markdown]
# The same masks, three numbers. On the whole of VOC every class occurs, and the three agree; on twenty images, or on toy scenes with few
# classes, they need not.
#
# And some things no rule can redo on finished maps: the scales, how maps get into [0, 1], **which images** (`train` or `train_aug`), which
# true masks (MCTformer scores against another folder, `SegmentationClassAug`). For masks of a *network* three more questions come
# in: which images, were image-level **labels** given at test time, and which dense **CRF** came after? The kit has these as data too (its own
# lines are what the settings say, and a profile may name a CRF in `segment.crf`):

# %%
asked = {name: (rule.split, rule.labels, rule.crf or "none", means[rule.over]) for name, rule in MASKS.items()}
pd.DataFrame.from_dict(
    asked, orient="index", columns=["images", "image-level labels", "dense CRF", "classes in the mean"]
)

# %% [markdown]
# So a line of a table that says "val mIoU" hides a handful of decisions. None of the rules is wrong. Two numbers by *two* rules are
# not comparable, though, and it is the reader who has to find that out. This kit scores every method by the same rule, and
# keeps the others' beside it.

# %% [markdown]
# ## Measure 3: class by class
#
# The mean over classes weighs each class the same. It can rise while a class is lost: two classes that gain five points each outweigh
# one that loses nine. And the mean depends on *which* classes are in it. A class without a pixel in truth and prediction has no
# IoU; some scripts leave it out, some count it as 0, some as 1. On VOC's full splits this does not matter, on small data it
# decides. This kit leaves it out and prints which classes are left.

# %% tags=["nbval-ignore-output"]
names = val_score["miou_classes"] or mask_score["miou_classes"]
by_class = (
    pd.DataFrame(
        {"seed": seed_score["fixed"]["iou"], "pseudo mask": mask_score["iou"], "segmentation (val)": val_score["iou"]}
    )
    .loc[names]
    .astype(float)
)
figure, axis = plt.subplots(figsize=(7, 0.42 * len(names) + 1), layout="constrained")
(100 * by_class).plot.barh(ax=axis, color=viz.COLORS[:3], width=0.8)
axis.invert_yaxis()
axis.set_xlabel("IoU (%)")
axis.legend(frameon=False, fontsize=8)
sns.despine(figure)
viz.show(
    figure,
    "IoU of each class at three stages. Where is the refinement no help, and which class does the segmentation lose?",
)

# %% tags=["nbval-ignore-output"]
change = (100 * (by_class["pseudo mask"] - by_class["seed"])).sort_values()
print(f"from seed to pseudo mask: {change.mean():+.1f} points in the mean,")
print(f"{change.index[0]} {change.iloc[0]:+.1f}, {change.index[-1]} {change.iloc[-1]:+.1f}")

# %% [markdown]
# ## Measure 4: the groups that an average hides
#
# An image **agrees** with the context bias if an object stands on its own context. Most training images do. If a method works only
# there, its average is still fine, and the day the boat lies on a trailer it fails. The **worst group** says so.
#
# Which group is the worse one? Think before you look, for it may change along the way. *Seeds and pseudo masks* are made with the
# image's label: "boat" is given, and the question is only where. On water the map may spill onto the water; on a road there is no
# water to spill onto. So the images that **agree** can have the worse seeds. *The segmentation* has no label. On a road the
# network may not find a boat at all, so there the images that **disagree** are in danger. Methods that fight the bias, CDA and DEFT,
# should be judged by this figure first.
#
# This table needs to know contexts, so it exists for toy scenes only. For photographs one can form groups as well: by
# size of the object, by number of classes, by camera.

# %% tags=["nbval-ignore-output"]
if "groups" in mask_score:
    groups = (
        100
        * pd.DataFrame(
            {
                "seed": seed_score["groups"],
                "pseudo mask": mask_score["groups"],
                "segmentation (val)": val_score["groups"],
            }
        ).T
    )
    figure, axis = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
    groups.plot.barh(ax=axis, color=viz.COLORS[:2], width=0.7)
    axis.invert_yaxis()
    axis.set_xlabel("mIoU (%)")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(figure)
    viz.show(figure, "mIoU of images that agree with the context bias and of those that do not, at each stage.")
    for stage, row in groups.iterrows():
        print(f"{stage:20s} worst group: {row.idxmin()}, {row.max() - row.min():.1f} points below the other")
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# How many images are in each group decides how much the average can hide:

# %% tags=["nbval-ignore-output"]
if "groups" in mask_score:
    for split, ids in (("train", seed_ids), ("val", val_ids)):
        print(f"{split}: {np.mean([folder.context[i].agrees for i in ids]):.0%} of {len(ids)} images agree")

# %% [markdown]
# ## What papers print
#
# `wsss_lib/paper_results.csv` holds what the five papers of this course print: each number with the table that it stands in.
# They were copied, not reproduced.

# %%
paper = results.paper(metric="mIoU", dataset="voc12")
paper.groupby("paper")[["value"]].count().rename(columns={"value": "numbers on VOC 2012"})

# %% [markdown]
# The names in the next figure, shortly. **PSA** and **IRN** are plain CAM followed by a learnt refinement: a network is trained on
# confident seeds to say which neighbouring pixels belong together, and seeds spread along these ties. **SEAM** asks that the map
# of a shrunken image be the shrunken map. **MCTformer** takes maps from the attention of a transformer. **AdvCAM** and **AMN** enlarge
# maps by attacking the classifier and by calibrating its scores. **SSSS** learns masks in a single stage.
#
# A method is built on such a *host*: CDA on PSA, on IRN, on SEAM. So the fair comparison within a paper is the host without and with the
# method, at the same stage. We take the papers' own main results (not their ablations, not what they quote), and for CPN,
# which prints its host only in an ablation, the two rows of that table.

# %%
main = paper[paper["kind"].eq("main") & paper["split"].isin(["train", "val"])]
cpn = paper[paper["paper"].eq("cpn") & paper["source"].eq("Table 2")].iloc[[0, -1]]
main = pd.concat([main, cpn]).assign(side=lambda t: np.where(t["method"] == "baseline", "without", "with"))
main = main.drop_duplicates(["paper", "host", "stage", "side"])  # the first: without CRF, without labels at test time
pairs = main.pivot(index=["paper", "host"], columns=["stage", "side"], values="value")
pairs = pairs[["seed", "pseudo_mask", "segmentation"]]  # the order of the way
print(f"{len(pairs)} pairs of a method and a host, {int(pairs.notna().sum().sum())} numbers")


# %%
def proper(name):
    return {"mctformer": "MCTformer", "advcam": "AdvCAM"}.get(name, name.upper().replace("_", "-"))


lines = [f"{proper(p)} on {proper(h)}" for p, h in pairs.index]
places = np.arange(len(pairs))
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
for axis, (stage, split) in zip(
    axes, {"seed": "train", "pseudo_mask": "train", "segmentation": "val"}.items(), strict=True
):
    without, with_it = pairs[stage, "without"], pairs[stage, "with"]
    axis.hlines(places, without, with_it, color="grey", linewidth=2, zorder=0)
    axis.scatter(without, places, color=viz.COLORS[0], label="host alone", s=28)
    axis.scatter(with_it, places, color=viz.COLORS[1], marker="s", label="with the method", s=28)
    axis.set(
        title=f"{stage.replace('_', ' ')} ({split})", xlabel="mIoU (%), as printed", yticks=places, yticklabels=lines
    )
axes[0].invert_yaxis()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
sns.despine(figure)
viz.show(
    figure,
    "What the papers print on VOC 2012, the host without and with the method. None of them prints a spread over seeds.",
)

# %% [markdown]
# The same as gains. Only numbers of one paper, one host and one stage are subtracted from each other:

# %%
gains = pairs.xs("with", axis=1, level="side") - pairs.xs("without", axis=1, level="side")
gains.set_axis(lines).round(1)

# %% [markdown]
# Four things to see:
#
# - **Gains do not travel at a fixed price.** CDA on SEAM brings 3.0 points to the seed and 1.6 to the segmentation, DEFT on IRN
#   4.0 and 5.6. The last stage has its own network and its own post-processing, and these differ from paper to paper.
# - **The host matters.** DEFT gains 4.0 points at the seed on IRN and 1.4 on AdvCAM, which is the better host to begin with. A
#   method that is strong on a weak host may be superfluous on a strong one.
# - **A large gain may be several.** CPN's 9.6 points on plain CAM contain the refinement module that it takes over from SEAM; the
#   ablation in its Table 2 adds one piece after the other.
# - **Many places are empty.** CPN prints no pseudo mask and no segmentation of its host, so nothing can be subtracted there.

# %% [markdown]
# ### One system, several numbers
#
# Papers quote each other's baselines, or run them again. How well do they agree on the *same* system at the same stage?

# %%
same = paper[paper["method"].eq("baseline") & paper["variant"].eq("")].drop_duplicates(
    ["paper", "host", "stage", "split"]
)
gap = same.groupby(["host", "stage", "split"])["value"].transform(lambda v: v.max() - v.min())
differing = same[gap > 0].sort_values(["host", "paper"])
differing = differing.assign(
    system=[f"{proper(h)}, {s.replace('_', ' ')}" for h, s in zip(differing["host"], differing["stage"], strict=True)]
)
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
sns.scatterplot(differing, x="value", y="system", hue="paper", style="paper", palette="colorblind", s=60, ax=axis)
for system, values in differing.groupby("system")["value"]:
    axis.text(values.max() + 0.2, system, f"{values.max() - values.min():.1f} apart", va="center", fontsize=8)
axis.set(xlabel="pseudo mask mIoU (%), as printed", ylabel="", xlim=(59, 71.5))
axis.margins(y=0.2)
axis.legend(frameon=False, fontsize=8, title="printed by", loc="center left", bbox_to_anchor=(1, 0.5))
sns.despine(figure)
viz.show(
    figure, "Where papers print different numbers for a system of the same name. The gaps are as large as many gains."
)

# %% [markdown]
# The name is the same; a re-run, another seed, or another refinement behind the same maps is not, and the tables rarely say. So these
# gaps are a free measurement of what such details do: up to two points. A gain of 1.5 points over a baseline *of another paper* is
# within them.
#
# Seeds and segmentations agree to the digit, since there everyone quotes the same source. That is agreement of copies,
# not of experiments.

# %% [markdown]
# ### What is compared with what?
#
# A long table of "state of the art" puts side by side what was trained with other supervision and other networks. The next figure takes
# all test scores of VOC 2012 that the five papers list, by backbone and by supervision: **I** image-level labels, **I+S** with
# saliency maps from a network that was trained with pixel masks, **F** full masks.

# %%
listed = paper[
    paper["stage"].eq("segmentation") & paper["split"].eq("test") & paper["supervision"].isin(["I", "I+S", "F"])
]
network = listed["backbone"].where(listed["backbone"] != "", listed["method"]).str.replace("WideResNet", "ResNet")
listed = listed.assign(network=network).drop_duplicates(["host", "method", "variant", "value"])
order = ["VGG-16", "ResNet-38", "ResNet-50", "ResNet-101"]
figure, axis = plt.subplots(figsize=(7, 2.7), layout="constrained")
sns.stripplot(
    listed, x="value", y="network", hue="supervision", order=order, hue_order=["I", "I+S", "F"],
    palette=viz.COLORS[:3], dodge=True, jitter=False, size=6, alpha=0.8, ax=axis,
)  # fmt: skip
axis.set(xlabel="VOC 2012 test mIoU (%), as printed", ylabel="")
axis.legend(frameon=False, fontsize=8, title="supervision")
sns.despine(figure)
viz.show(
    figure,
    "Test scores that the five papers list. In each row methods, years and thresholds differ as well; full masks are still ahead.",
)

# %% [markdown]
# Read along a row and then along a colour. A score of 65 is excellent with one network and modest with another; saliency, which was
# itself learnt from masks, moves a method as well. The distance to full masks is what is left to do.
#
# Fair is a comparison in which **one thing differs**. So ask of two numbers: the same backbone? The same supervision (no
# saliency, no extra data)? The same split, the same labels at test time, the same post-processing? If two things differ, the number
# belongs to both, and nobody knows how to divide it.
#
# ### Labels at test time
#
# One case is worth a figure. WS-FCN prints its val score four times: with and without a dense CRF, and with and without the *true*
# image-level labels of the val images, which rule out every class that is not there.

# %%
ids = {
    "host (SSSS)": "ws_fcn-t4-ssss-baseline-val",
    "WS-FCN": "ws_fcn-t4-ssss-ws_fcn-val",
    "WS-FCN, dense CRF": "ws_fcn-t4-ssss-ws_fcn-crf-val",
    "WS-FCN, true labels": "ws_fcn-t4-ssss-ws_fcn-gt-val",
    "WS-FCN, both": "ws_fcn-t4-ssss-ws_fcn-gt-crf-val",
}
values = {name: results.paper(id=i)["value"].item() for name, i in ids.items()}
viz.show(
    viz.bars(values, "VOC 2012 val mIoU (%), as printed", width=6),
    "Knowing the labels of the test images is worth more than the method is. The abstract prints the last bar.",
)
print(
    f"the method: {values['WS-FCN'] - values['host (SSSS)']:+.2f}   the labels: {values['WS-FCN, true labels'] - values['WS-FCN']:+.2f}"
)

# %% [markdown]
# ### Things to look for in a paper
#
# From our reading of these five papers and their code:
#
# | what | where seen | what this kit does |
# |---|---|---|
# | the threshold is tuned on the set that is reported | seeds: SEAM and CPN sweep, IRN and CDA do not | both numbers, always apart; never a sweep on val |
# | a background score chosen on val, then reported on val | WS-FCN's code, for masks without CRF | all settings of a profile are fixed beforehand |
# | true labels at test time | the headline of WS-FCN | the segmentation stage never sees a label |
# | train (1,464 images) or train_aug (10,582)? | learnt on train_aug, seeds scored on train; not always said | `train_split` and `seed_split` are two settings |
# | one run a number | all five | mean ± standard deviation over seeds |
# | text and code differ | CPN hides 39 % of the patches, not 50 %; CDA's best variant does not rescale as written | differences are switches with a name |
# | the optimiser is not what it is called | IRN's family passes weight decay into the place of momentum | true momentum; `paper` repeats the published value |
# | a row mixes two systems | CSD lists SEAM's seeds beside CDA's segmentation | numbers with their table in one file |
#
# None of this makes the ideas wrong. It makes their *size* unknown. That is why this kit measures every method again, on the same
# hosts, with the same budget and rules, and over several seeds, and why its numbers stand beside the printed ones and not
# among them.

# %% [markdown]
# ## Measure 5: paper · here
#
# Two columns, never one. The papers' numbers are for VOC 2012 and a large network; ours are for the data and the network of this
# run. Only with `profile = "paper"` do they answer the same question. A method of these papers stands here *on its host*;
# what is itself only a host in them, such as plain CAM (IRN's first step) or SEAM, stands here as it was printed without any
# method on top.

# %% tags=["nbval-ignore-output"]
alone = {"cam": "irn"}.get(method, method)  # the name of the method where it is a host
side = "with" if any(paper == method for paper, _ in pairs.index) else "without"
source = next(pair for pair in pairs.index if (pair[0] == method if side == "with" else pair[1] == alone))
printed = pairs.loc[source].xs(side, level="side")
here = [seed_score["fixed"]["miou"], mask_score["miou"], val_score["miou"]]
title = f"{proper(method)} on {proper(source[1])}" if side == "with" else f"{proper(alone)} as a host"
pd.DataFrame({
    f"paper: {title}, VOC 2012 (%)": printed.to_list(),
    f"here: {method}, {folder.name}, {settings.backbone.name}, {profile} (%)": [f"{100 * v:.1f}" for v in here],
}, index=["seed (train)", "pseudo mask (train)", "segmentation (val)"])  # fmt: skip

# %% [markdown]
# The first row is the seed at a *fixed* threshold on both sides: IRN and CDA take 0.15 for all images, this run takes the
# threshold of its profile. The second row is no equal either: IRN refines with a network of its own that learns affinities
# between pixels, this run as its `refine.how` says, by default with a dense CRF alone. The third is measured on other images than the first two, on both sides.
#
# ## A checklist
#
# Before you write "A is better than B":
#
# 1. **Same data**, same split, same labels at test time.
# 2. **Same budget**: steps, image size, scales at test time. If A trains on three times the data, so must B. (CDA does this well: it
#    compares with conventional augmentation on a data set of three times the size.)
# 3. **Same rule for thresholds**, chosen before the result was seen.
# 4. **Several seeds**, the same ones for both; report mean ± standard deviation and the interval of the paired difference.
# 5. **All stages**: a gain at the seed that is gone at the segmentation is no gain.
# 6. **Classes and groups** beside the mean, the worst group above all.
# 7. **The command** that makes the number.

# %% [markdown]
# ## Exercises
#
# 1. **More seeds.** Run `wsss run all -p seed=1` and `-p seed=2`, then this notebook again. What does the ± in the table of runs
#    say about the first decimal of a score? (Expected: it is noise; on toy scenes the ± is about a point.)
# 2. **Your own comparison.** Run the same three seeds with `--set dense_crf.alpha=2.0`. Take both pipelines' scores out of
#    `runs.collect(run.root)`, seed by seed, and give them to `paired_interval`. Is the difference shown? (The next cell
#    prints what `collect` gives.)
# 3. **Luck.** In the dial figure set the true gain to 0 and three seeds. Go through all values of `luck`. In how many of the 21
#    cases would you have claimed a gain or a loss? How many do you expect? (Expected: one in twenty, so about one.)
# 4. **Another rule.** After notebook 02, compare `stages.make_cams(run).metrics["seed"]["protocols"]` with that of
#    `run.of("cda")`, rule by rule. Is the gain the same under each? Does the order of the two methods hold under all of them?
#    (There is no expected result. If the order does not hold, the rule decides, and "better" needs its name beside it.)

# %% tags=["nbval-ignore-output"]
found = [
    r
    for r in runs.collect(run.root)
    if r["dataset"] == folder.name and r["profile"] == profile and r["stage"] == "pseudo_masks"
]
for r in found:
    print(r["pipeline"], "seed", r["seed"], f"{100 * r['metrics']['mask']['miou']:.1f}")

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> Method A: 46.5 ± 1.0 over three seeds, B: 45.0 ± 1.0. Is A better?</summary>
# It cannot be said from these numbers. If the seeds are the same, look at the three differences: they may be 1.5, 1.5, 1.5 or
# 3.6, -0.6, 1.5. The first shows a gain, the second does not.
# </details>
#
# <details><summary><b>2.</b> A paper reports the seed of the baseline at a fixed threshold and its own at the best one. What has it
# shown?</summary>
# Nothing about the method: its own number includes the gift of the threshold, which you have seen above for plain CAM.
# </details>
#
# <details><summary><b>3.</b> A script halves its maps, sweeps thresholds from 0.20 to 0.59, and its paper says that 0.45 was best. Would
# you take 0.45 for your maps?</summary>
# Only if yours are halved, too: of maps in [0, 1] it is 0.90. And it is the best of a window that begins at 0.40; what is best
# below, that script cannot say.
# </details>
#
# <details><summary><b>4.</b> The mean over all images rises by a point, and the worst group falls by three. Which one do you
# report?</summary>
# Both. Who uses the method wants to know where it fails, and a mean over mostly easy images cannot say it.
# </details>

# %% [markdown]
# ## Take-aways
#
# - A difference counts against the spread of its seeds; pair the runs by seed and give the interval.
# - The best threshold is a gift of information from the true masks. Report it apart, or not at all.
# - The same maps have as many scores as there are rules. Ask for the rule before you compare the number.
# - Stages, classes and groups say *where* a method gains. The mean says only whether.
# - Papers' numbers differ in backbone, supervision, labels at test time and thresholds. Subtract only what differs in one thing.
# - Ours and theirs never stand in one column.

# %% [markdown]
# ## References
#
# - X. Bouthillier et al. *Accounting for Variance in Machine Learning Benchmarks.* MLSys 2021.
# - Student (W. S. Gosset). *The Probable Error of a Mean.* Biometrika 1908.
# - S. Sagawa, P. W. Koh, T. Hashimoto, P. Liang. *Distributionally Robust Neural Networks for Group Shifts.* ICLR 2020. On worst
#   groups.
# - Y. Su, R. Sun, G. Lin, Q. Wu. *Context Decoupling Augmentation for Weakly Supervised Semantic Segmentation* (CDA). ICCV 2021.
# - F. Zhang, C. Gu, C. Zhang, Y. Dai. *Complementary Patch for Weakly Supervised Semantic Segmentation* (CPN). ICCV 2021.
# - Back to the start: [00 Start](00_start.ipynb).
