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
# # 07 · Pseudo masks: let the image finish what the seed began
#
# A seed knows roughly *where* an object is, and nothing of its outline. The image knows outlines, and nothing of
# objects. A dense conditional random field (CRF) brings the two together.
#
# | | |
# |---|---|
# | **Time** | under a minute on two CPU cores (profile `demo`), once the maps of notebook 01 are there |
# | **Needs** | nothing but this kit; no GPU, no downloads |
# | **Paper** | Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NIPS 2011 ([arXiv:1210.5644](https://arxiv.org/abs/1210.5644)) |
# | **Before** | [01 CAM](01_cam.ipynb) |
#
# Afterwards you will be able to
#
# 1. write down the energy of a dense CRF and run its mean-field updates in ten lines of NumPy;
# 2. give the background a score, though no map of its own exists, and mark the pixels that are *sure*;
# 3. say when a CRF makes masks better and when it makes them **worse**, and measure both.

# %% [markdown]
# ## Parameters
#
# As in every notebook. New is `method`: whose activation maps are refined. All methods of this course write the same
# files, so this notebook works for each of them.

# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")  # smoke | demo | laptop | paper
dataset = ""  # name of the data set; empty: the profile's own
data_root = ""  # folder in VOC layout; empty: toy scenes, drawn on the spot
runs_root = ""  # where results go; empty: runs/ of the project
seed = 0  # of every random draw
overrides = {}  # departures from the profile, {"cam.epochs": 3}
method = "cam"  # whose activation maps are refined

# %% [markdown]
# ## Set-up

# %% tags=["nbval-ignore-output"]
import inspect
import timeit
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from data_prep.ready import ready
from wsss_lib import localize, results, stages, viz, widgets
from wsss_lib.data import normalize, read_mask
from wsss_lib.metrics import ConfusionMatrix
from wsss_lib.refine.dense_crf import (
    PRESETS,
    MaskSettings,
    background_score,
    dense_crf,
    la_ha_mask,
    pseudo_mask,
)
from wsss_lib.runs import Run
from wsss_lib.settings import load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
run = Run(settings, folder, method=method, seed=seed, root=runs_root)
print(
    f"torch {torch.__version__}, device {stages.pick_device(settings.machine.device)}, profile {profile}, seed {seed}"
)

# %% [markdown]
# Pseudo masks are made for the training images and scored on the split that papers score them on. No network is
# trained in this notebook, unless the maps of notebook 01 are missing.

# %%
train_ids, seed_ids = run.ids("train"), run.ids("seed")
print(f"{len(train_ids)} images get pseudo masks, {len(seed_ids)} are scored, {folder.n_classes} classes")

# %% [markdown]
# We need a picture to talk about: an *easy* one, whose object has quite another colour than its surroundings. The next cell finds
# it among the first images, by the distance between the mean colours inside and outside the true mask. True masks serve to
# choose, look and measure here; they make no pseudo mask. (A *hard* picture follows below.)


# %%
def contrast(image_id):
    picture, truth = folder.image(image_id).float(), folder.mask(image_id)
    inside, outside = (truth > 0) & (truth < 255), truth == 0
    return float((picture[:, inside].mean(1) - picture[:, outside].mean(1)).norm().nan_to_num())


alone = [i for i in seed_ids if folder.label(i).sum() == 1] or list(seed_ids)
easy = max(alone[:40], key=contrast)
print(f"easy: {', '.join(folder.class_names(easy))}, colour distance {contrast(easy):.0f}")

# %% [markdown]
# ## The idea in one figure
#
# **Pixels that look alike and lie close should bear the same label.** Every pixel asks every other pixel for its opinion,
# and listens more to those that are close *and* of a similar colour. How much one pixel listens to another is a number
# between 0 and 1, a *kernel*. Below you see it for two pixels, one on the object and one just beside it, at the widths
# that this profile uses.


# %%
crf = stages.crf_settings(settings, "refine") or PRESETS["psa"]
picture, truth = viz.as_array(folder.image(easy)), folder.mask(easy)
on_object = (truth > 0) & (truth < 255)
beside = F.max_pool2d(on_object[None].float(), 9, stride=1, padding=4)[0] == 0  # not on the outline itself


def listens_to(pixel):
    place = ((np.indices(truth.shape) - np.reshape(pixel, (2, 1, 1))) ** 2).sum(0) / crf.bilateral_sxy**2
    colour = ((picture - picture[pixel].astype(float)) ** 2).sum(-1) / crf.bilateral_srgb**2
    return np.exp(-place / 2), np.exp(-(place + colour) / 2)


# %%
centre, rows = torch.argwhere(on_object).float().mean(0), []
for where in (on_object, beside if beside.any() else truth == 0):
    places = torch.argwhere(where)
    pixel = tuple(places[((places - centre) ** 2).sum(1).argmin()].tolist())
    rows.append([viz.overlay_mask(picture, np.where(listens_to(pixel)[0] > 0.99, 255, 0), 1.0), *listens_to(pixel)])
figure = viz.grid(rows, ["the pixel", "close", "close and alike"], ["on the object", "beside it"], size=1.9)
viz.show(
    figure,
    "To whom does a pixel (white spot) listen? By place alone it listens across the outline. With colour, it stays on its own side.",
)

# %% [markdown]
# Nobody told the CRF what an object is. The outline in the right column comes from the colours of this one image. A seed
# needs only to start in the right place, and its opinion then spreads as far as the colour goes. And no farther: an
# object of two colours is, for these kernels, two things.

# %% [markdown]
# ## The energy
#
# A labelling $x$ gives each pixel $i$ one of $L$ labels: background, or a class that is present. Its energy says how bad it is:
#
# $$E(x) \;=\; \sum_i \underbrace{-\log p_i(x_i)}_{\text{unary}} \;+\; \sum_{i<j} \underbrace{[x_i \ne x_j]}_{\text{Potts}}
#   \Big( w_1 \, k_1(i,j) + w_2 \, k_2(i,j) \Big)$$
#
# - The **unary** term asks each pixel alone. $p_i$ is what the activation map says. To contradict it costs $-\log p$.
# - The **pairwise** term asks each pair. Two pixels with the *same* label pay nothing. Two with *different* labels pay, and
#   they pay more the closer and the more alike they are. This rule, "any difference costs the same", is the Potts model.
#
# Without the pairwise term, each pixel would take its own best label, and the result would be the seed. Without the unary term, one
# label for the whole image would be best. The truth lies between, and the weights $w$ say where.
#
# There are two kernels, with places $s_i$ in pixels and colours $c_i$ in grey levels from 0 to 255:
#
# $$k_1 = \exp\Big(\!-\frac{\lVert s_i - s_j\rVert^2}{2\,\theta_\gamma^2}\Big) \quad\text{(smoothness)} \qquad
#   k_2 = \exp\Big(\!-\frac{\lVert s_i - s_j\rVert^2}{2\,\theta_\alpha^2} - \frac{\lVert c_i - c_j\rVert^2}{2\,\theta_\beta^2}\Big)
#   \quad\text{(appearance)}$$
#
# $k_1$ is narrow and removes specks. $k_2$ is wide and finds outlines. *Dense* means that **every** pair of pixels has an
# edge, not only neighbours: a leg can learn from a head.

# %% [markdown]
# **Two pixels by hand.** Pixel A is *sheep* with probability 0.9, pixel B with 0.4, and they look exactly alike. Each for itself,
# A would be sheep and B background. That costs $-\log 0.9 - \log 0.6 = 0.62$, and besides $w\,k$ for the disagreement. If both are
# sheep it costs $-\log 0.9 - \log 0.4 = 1.02$ and nothing more. So as soon as $w\,k > 0.41$, it is cheaper for B to give in. Had A been
# less sure, B might have convinced A. A dense CRF is this bargain, struck between all pairs at once.

# %% [markdown]
# Six numbers, then: the iterations (below), $\theta_\gamma$ and $w_1$ of the smoothness kernel (`gaussian`), and $\theta_\alpha$,
# $\theta_\beta$ and $w_2$ of the appearance kernel (`bilateral`). Published pipelines disagree about them. The widths in place are in
# pixels, so what suits images of 500 pixels is too wide for 64. The last line is this profile's choice. It stands in the
# settings and is the same for all images; each of the names can take its place, as in `refine.crf = "irn"`.

# %%
rows = {name: asdict(preset) for name, preset in {**PRESETS, "this profile": crf}.items()}
pd.DataFrame(rows, dtype=float).T

# %% [markdown]
# ## The unary: a score for the background
#
# The activation map gives each *present class* a score in $[0,1]$. The background has no map. Its score must come from the
# **absence** of all others. With the strongest class's activation $m = \max_c M_c$, Ahn and Kwak (PSA, 2018) take
#
# $$s_{\text{background}} = (1 - m)^{\alpha}$$
#
# What does the exponent do? Where the background's curve crosses the diagonal, background and class are equally strong.

# %%
m = np.linspace(0, 1, 501)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(m, m, color="black", linestyle="--", label="the class: $m$")
for colour, exponent in zip(viz.COLORS, (1, 4, 16, 32), strict=False):
    background = background_score(m[None], exponent)
    crossing = m[(m >= background).argmax()]
    axis.plot(m, background, color=colour, label=rf"background, $\alpha={exponent}$")
    axis.plot(crossing, crossing, "o", color=colour)
    print(f"alpha {exponent:2d}: the class wins from activation {crossing:.2f} on")
axis.set(xlabel="strongest activation $m$", ylabel="score")
axis.legend(frameon=False, fontsize=8)
viz.show(
    figure, "The background's score for four exponents. The higher the exponent, the sooner the class (dashed) wins."
)

# %% [markdown]
# So **without a CRF, $\alpha$ is the background threshold of notebook 01 in disguise**: $\alpha=4$ says the same as
# $\vartheta=0.28$. With a CRF it says more, because now it matters also *by how much* a pixel is background. Far from every
# object $m \approx 0$, the background scores 1 and the class almost 0: a firm opinion, which is passed on to the neighbours.
#
# Low $\alpha$ is generous to the background, high $\alpha$ to the foreground. PSA calls the two `la` and `ha`. We shall need both.

# %% [markdown]
# ## The smallest implementation
#
# We now run a dense CRF by brute force: all pairs of pixels, one matrix. That is only possible for a small image, so we
# shrink ours until its longest side has 32 pixels.


# %%
def shrink(image_id, side=32):
    picture = Image.fromarray(viz.as_array(folder.image(image_id)))
    truth = Image.fromarray(folder.mask(image_id).numpy())
    size = tuple(max(1, round(side * length / max(picture.size))) for length in picture.size)
    return np.asarray(picture.resize(size, Image.Resampling.BOX)), np.asarray(
        truth.resize(size, Image.Resampling.NEAREST)
    )


small, small_truth = shrink(easy)
print(f"small image {small.shape}: {small_truth.size} pixels, {small_truth.size**2:,} pairs")

# %% [markdown]
# **Step 1, a map.** To see the CRF alone at work, we take no network. Our map is a round blob in the middle of the object,
# highest at 0.9: a caricature of a CAM, which is right about the place and knows no outline.
#
# **Step 2, the unary.** Background and class side by side, divided by their sum: one probability for each label and pixel.


# %%
def blob(truth):
    places = np.argwhere((truth > 0) & (truth < 255))
    rows, columns = np.mgrid[: truth.shape[0], : truth.shape[1]]
    distance = (rows - places[:, 0].mean()) ** 2 + (columns - places[:, 1].mean()) ** 2
    return 0.9 * np.exp(-distance / (0.18 * len(places)))


def two_labels(activation, alpha=4):
    scores = np.stack([(1 - activation) ** alpha, activation])
    return scores / scores.sum(0)


p = two_labels(blob(small_truth))
print("p", p.shape, "labels, rows, columns; sums to 1:", np.allclose(p.sum(0), 1))

# %% [markdown]
# **Step 3, the kernels.** Each pixel becomes a row of features: its place divided by a width, and for $k_2$ also its colour
# divided by a width. A kernel is then one Gaussian of the distance between rows, for all pairs at once.
#
# One detail is not in the equations. The released code divides each kernel by the square roots of its row sums
# ($D^{-1/2} K D^{-1/2}$). Otherwise pixels in large, even regions would hear a far louder crowd than pixels of small ones,
# and the weights $w$ would mean another thing at every image size.


# %%
def kernel(features):
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    k = np.exp(-distance / 2)
    scale = 1 / np.sqrt(k.sum(1))
    return scale[:, None] * k * scale


def all_pairs(image, crf):
    place = np.argwhere(np.ones(image.shape[:2])).astype(float)
    colour = image.reshape(-1, 3) / crf.bilateral_srgb
    alike = kernel(np.hstack([place / crf.bilateral_sxy, colour]))
    return crf.gaussian_compat * kernel(place / crf.gaussian_sxy) + crf.bilateral_compat * alike


# %% [markdown]
# The image shrank, so the widths in place shrink too. The weights and the width in colour stay as PSA published them.

# %%
small_crf = replace(PRESETS["psa"], gaussian_sxy=1.5, bilateral_sxy=10)
pairs = all_pairs(small, small_crf)
np.testing.assert_allclose(pairs, pairs.T)
print("pairs", pairs.shape, "symmetric: i listens to j as j to i")

# %% [markdown]
# **Step 4, mean field.** The best labelling cannot be found by trying: already $32 \times 32$ pixels with two labels have
# $2^{1024}$ of them. Mean field looks for something easier, a probability $Q_i(l)$ for each pixel *by itself*, such that the
# product of all is as close as possible (in Kullback-Leibler divergence) to the true distribution $\propto e^{-E(x)}$. Setting
# the derivative to zero gives one equation a pixel:
#
# $$Q_i(l) \;\propto\; \exp\Big(\log p_i(l) \;+\; \sum_m w_m \sum_j k_m(i,j)\, Q_j(l)\Big)$$
#
# Read it aloud: *my opinion is what my own map says, plus what the others think, each counted as much as I listen to them.*
# The penalty for different labels has become a bonus for equal ones. The two differ by a constant that is the same for all
# labels, and normalising removes it.
#
# The equation has $Q$ on both sides, so one starts at $Q = p$ and repeats. An iteration is a matrix product and a softmax over
# the labels. The logarithm of zero is minus infinity, and nobody should be that sure, so small probabilities are raised to
# $10^{-5}$ first. (As in the released code, a pixel hears itself too.)


# %%
def mean_field(p, pairs, iterations):
    log_p = np.log(np.maximum(p, 1e-5)).reshape(len(p), -1)
    history = [p.reshape(len(p), -1)]
    for _ in range(iterations):
        opinion = log_p + history[-1] @ pairs
        q = np.exp(opinion - opinion.max(0))
        history.append(q / q.sum(0))
    return [q.reshape(p.shape) for q in history]


history = mean_field(p, pairs, small_crf.iterations)
print(f"{len(history) - 1} iterations, Q {history[-1].shape}, sums to 1: {np.allclose(history[-1].sum(0), 1)}")

# %% [markdown]
# **Step 5, look at it.** To be fair we want a failure beside the success. So we give each of the first images the same kind of blob,
# let a CRF refine it, and call the image *hard* in which the result fits the true mask worst. (For forty images we take the
# library's fast version, which is compared with ours below.)


# %%
def fit_of_blob(image_id):
    image, truth = shrink(image_id)
    found = dense_crf(image, two_labels(blob(truth)).astype(np.float32), small_crf).argmax(0) > 0
    return (found & (truth > 0)).sum() / max((found | (truth > 0)).sum(), 1)


hard = min((i for i in alone[:40] if i != easy), key=fit_of_blob, default=easy)
print(f"hard: {', '.join(folder.class_names(hard))}, colour distance {contrast(hard):.0f}")

# %% [markdown]
# The upper row is the easy image, the lower one the hard image. Watch the outline appear within a few iterations, and watch what
# happens where colour does not tell object and surroundings apart.

# %%
shown, rows, problems, exact = (0, 1, 2, 5, 10), [], {}, {}
for name, image_id in {"easy": easy, "hard": hard}.items():
    image, true_mask = shrink(image_id)
    problems[name] = image, two_labels(blob(true_mask)), all_pairs(image, small_crf)
    exact[name] = mean_field(*problems[name][1:], small_crf.iterations)
    rows.append([image, *(exact[name][t][1] for t in shown), (true_mask > 0) * 1.0])
figure = viz.grid(rows, ["image", *[f"iteration {t}" for t in shown], "true mask"], list(exact), size=1.25)
viz.show(
    figure,
    "Mean-field iterations: the probability of the class, from 0 (dark) to 1 (bright). The last column is the true mask.",
)

# %% [markdown]
# In the toy scenes the easy object grows to nearly its full shape. Look closely, though: a part of *another* colour, such as
# the telling part, may drop out, since the CRF sees only colour and place. The hard object fares worse: what looks like its
# surroundings is outvoted by them, since they are many and sure.
#
# **Step 6, does the energy fall?** Take the labelling that $Q$ prefers after each iteration and put it into $E(x)$.


# %%
def energy(labels, p, pairs):
    different = labels[:, None] != labels[None]
    unary = -np.log(np.maximum(p, 1e-5)).reshape(len(p), -1)
    return unary[labels, np.arange(len(labels))].sum() + (pairs * different).sum() / 2


curves = {name: [energy(q.argmax(0).ravel(), *problems[name][1:]) for q in states] for name, states in exact.items()}
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
pd.DataFrame(curves).plot(
    ax=axis, style=["o-", "s--"], color=viz.COLORS[:2], xlabel="iteration", ylabel="energy $E(x)$", ylim=(0, None)
)
viz.show(
    figure,
    "The energy of the preferred labelling falls and then stays. How well the labelling fits the true mask it does not know.",
)

# %% [markdown]
# All pixels update at once, so nothing *guarantees* that the energy falls at each step; in practice it nearly always does.
# The second lesson of this figure is the more important one. **The energy of the hard image falls just as nicely.** A low
# energy means a labelling that suits colours and seed. It does not mean a right one.

# %% [markdown]
# ## The library does the same
#
# How far would brute force carry? The matrix has a row and a column for each pixel.

# %%
for name, n in {
    "the small image": small_truth.size,
    "an image of this data set": truth.numel(),
    "a VOC image": 375 * 500,
}.items():
    print(f"{name}: {n:,} pixels, a matrix of {8 * n**2 / 1e9:,.2f} GB")

# %% [markdown]
# So a trick is needed, and it made the paper famous. The message $\sum_j k(i,j)\,Q_j$ is a *Gaussian blur*, in two dimensions
# for $k_1$, in five for $k_2$ (two of place, three of colour). Blurring may be approximated: put the values on a coarse lattice in
# that space, blur there, and read them back. With the *permutohedral lattice* the time grows with the number of pixels
# and not with its square. The library `pydensecrf` does this, and our `dense_crf` hands it what we have just met: the logarithms,
# two kernels with their widths and weights, and the number of iterations.

# %%
print(inspect.getsource(dense_crf).split('"""')[2].strip())

# %% [markdown]
# Approximately equal, then: an approximation is only worth something if somebody has compared it with the exact sums. We ask that
# the two choose the same label at 97 of 100 pixels or more, on both images. The last column shows where their probabilities
# differ.

# %%
rows = []
for name, (image, p, _) in problems.items():
    by_lattice, by_hand = dense_crf(image, p.astype(np.float32), small_crf), exact[name][-1]
    assert (by_lattice.argmax(0) == by_hand.argmax(0)).mean() >= 0.97
    rows.append([image, by_hand[1], by_lattice[1], np.abs(by_lattice - by_hand)[1]])
print("brute force and pydensecrf choose the same label at 97 % of the pixels, or more")
figure = viz.grid(rows, ["image", "brute force", "pydensecrf", "difference"], list(problems), size=1.5)
viz.show(
    figure,
    "The exact sums and the lattice side by side. They differ at few pixels, on outlines, where both were undecided.",
)

# %% [markdown]
# ## From activation maps to pseudo masks
#
# Now the real maps. The stage `cams` of [notebook 01](01_cam.ipynb) is loaded; if it is missing, it is computed first.

# %% tags=["nbval-ignore-output"]
cams_stage = stages.make_cams(run)
cam_dir = cams_stage.folder("cams")
print(f"maps of {cams_stage.metrics['images']} images")

# %% [markdown]
# Three helpers: `look` gathers what we need of one image, its pixels, the maps of the classes that are present, and the true
# mask. `refine` makes a pseudo mask of it with any exponent and any CRF, `None` for no CRF. `row_of` lays masks over the image
# and puts the true one at the end.

# %%
alpha = settings.dense_crf.alpha


def look(image_id):
    cam = localize.load_cam(cam_dir / f"{image_id}.npz", n_classes=folder.n_classes).numpy()
    present = np.flatnonzero(folder.label(image_id))
    return viz.as_array(folder.image(image_id)), cam[present], present, folder.mask(image_id).numpy()


def refine(image_id, alpha=alpha, crf=crf):
    return pseudo_mask(*look(image_id)[:3], MaskSettings("power", alpha=float(alpha), crf=crf))


def row_of(image_id, *masks):
    picture, _, _, truth = look(image_id)
    return [picture, *(viz.overlay_mask(picture, mask) for mask in (*masks, truth))]


# %% [markdown]
# The recipe for one image is what we did by hand: score the background, stack it with the maps, refine, take the strongest. The
# library's `pseudo_mask` does it in one call, pixel for pixel the same.

# %%
picture, maps, present, truth = look(easy)
scores = np.stack([(1 - maps.max(0)) ** alpha, *maps])
by_hand = np.array([0, *(present + 1)])[dense_crf(picture, scores, crf).argmax(0)]
np.testing.assert_array_equal(by_hand, refine(easy))
print("labels in the CRF:", ["background", *folder.class_names(easy)], "of", folder.n_classes + 1)

# %% [markdown]
# ### Only the labels present
#
# Of all $K+1$ labels only two or three enter. The image-level label says which classes are in the image, and whoever knows
# that should use it. There are two reasons.
#
# **No invented classes.** Each map is divided by its own maximum, so the map of an *absent* class has a peak of 1 somewhere
# too. Let us pretend that we do not know the label, and keep all maps.


# %% tags=["nbval-ignore-output"]
def with_all_classes(image_id):
    image = normalize(folder.image(image_id))[None]
    with torch.no_grad():
        cam = localize.multi_scale_cam(classifier, image, scales=settings.localize.scales, flip=True, stride=1)
    maps = localize.normalize_cam(cam, torch.ones(1, folder.n_classes))[0].numpy()
    return pseudo_mask(
        viz.as_array(folder.image(image_id)), maps, np.arange(folder.n_classes), MaskSettings(alpha=alpha, crf=crf)
    )


classifier = stages.load_classifier(run).cpu()
rows = [row_of(i, with_all_classes(i), refine(i)) for i in alone[:3]]
figure = viz.grid(rows, ["image", "all classes", "classes present", "true mask"], size=1.3)
viz.show(
    viz.legend(figure, folder.classes, 4),
    "Without the image-level label each class claims its piece of the image. With it, only what is there can appear.",
)

# %% [markdown]
# **Speed.** Each label is blurred separately, so the time grows with the number of labels, once they are more than a few. Here
# is one image of this data set with the labels that are present, with all of them, and with VOC's 21. The absent ones get the
# lowest score, and so they win nowhere.

# %% tags=["nbval-ignore-output"]
few = np.stack([background_score(maps, alpha), *maps])
seconds = {}
for labels in (len(few), folder.n_classes + 1, 21):
    scores = np.concatenate([few, np.full((labels - len(few), *truth.shape), 1e-5, np.float32)])
    seconds[labels] = min(timeit.repeat(lambda s=scores: dense_crf(picture, s, crf), number=1, repeat=5))
    print(
        f"{labels:2d} labels: {1e3 * seconds[labels]:5.1f} ms, {seconds[labels] / seconds[len(few)]:.1f} times the labels present"
    )

# %% [markdown]
# ### All training images
#
# The stage `pseudo_masks` does this for every training image, over several processes, since each image is a job of its own. A
# finished stage is loaded. The masks are PNG files with the VOC palette: values are class indices, colours are for us.

# %% tags=["nbval-ignore-output"]
mask_stage = stages.make_pseudo_masks(run)
mask_dir = mask_stage.folder("masks")
print(f"{mask_stage.metrics['images']} pseudo masks in {mask_stage.metrics['seconds']:.0f} s")

# %% [markdown]
# ## Look: successes beside failures
#
# For each image we compare the seed at the fixed threshold with the pseudo mask: intersection over union (IoU) of the
# foreground with the true mask, before and after. Then we sort by the **difference**, to see where the CRF helped most and
# where it did most harm. To keep this short, at most 400 images take part.


# %%
def foreground_iou(mask, truth):
    known = truth < 255
    hit = (mask == truth) & (truth > 0) & known
    either = ((mask > 0) | (truth > 0)) & known
    return 100 * hit.sum() / max(either.sum(), 1)


def seed_and_mask(image_id):
    cam = localize.load_cam(cam_dir / f"{image_id}.npz", n_classes=folder.n_classes)
    return localize.seed(cam, settings.localize.threshold).numpy(), read_mask(mask_dir / f"{image_id}.png")


# %% tags=["nbval-ignore-output"]
scored = pd.DataFrame({"id": seed_ids[:400]})
scored[["before", "after"]] = [
    [foreground_iou(m, folder.mask(i).numpy()) for m in seed_and_mask(i)] for i in scored["id"]
]
scored["gain"] = scored["after"] - scored["before"]
scored = scored.sort_values("gain", ascending=False, ignore_index=True)
better, worse = (scored["gain"] > 1).mean(), (scored["gain"] < -1).mean()
print(f"better by more than one point: {better:.0%} of {len(scored)} images, worse: {worse:.0%}")

# %% tags=["nbval-ignore-output"]
chosen = pd.concat([scored.head(2), scored.tail(3)])
rows = [row_of(i, *seed_and_mask(i)) for i in chosen["id"]]
for row, image_id in zip(rows, chosen["id"], strict=True):
    row.insert(1, viz.overlay_cam(row[0], look(image_id)[1].max(0)))
figure = viz.grid(
    rows, ["image", "CAM", "seed", "pseudo mask", "true mask"], [f"{g:+.0f}" for g in chosen["gain"]], size=1.2
)
viz.show(figure, "Above where the CRF gained most, below where it lost most; on the left the change of IoU in points.")

# %% [markdown]
# The upper rows are what one hopes for: a vague seed, and the image draws the line. The lower rows are the price. A CRF has no
# idea of its own about objects, so it can only **amplify** what the seed says. Two ways lead to failure:
#
# - the seed lies (partly) on the context, and the CRF carries the label over all of that context;
# - the object looks like its surroundings, or the seed covers only a small part of it, and the surroundings outvote it.
#
# The average hides this, so here is every image. Look at the dots: does the CRF lift all seeds by the same amount? Or does a seed
# have to be good enough first, before the CRF can do anything for it?

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(3.6, 3.6), layout="constrained")
axis.plot([0, 100], [0, 100], color="grey", linestyle=":")
axis.scatter(scored["before"], scored["after"], s=8, alpha=0.5, color=viz.COLORS[0])
axis.set(
    xlabel="IoU of the seed (%)", ylabel="IoU of the pseudo mask (%)", xlim=(0, 100), ylim=(0, 100), aspect="equal"
)
viz.show(figure, "Each dot is an image; above the dotted line the CRF made it better, below it worse.")

# %% [markdown]
# ## Turn the dials
#
# Choose an image, the exponent $\alpha$, and the width in colour $\theta_\beta$ (`bilateral_srgb`). Small $\theta_\beta$: only nearly
# equal colours talk to each other. Large $\theta_\beta$: everything talks, and outlines vanish. (Without a running kernel you see
# the picture at the start.)


# %%
def draw(image, alpha, bilateral_srgb):
    i = seed_ids[image]
    masks = refine(i, alpha, None), refine(i, alpha, replace(crf, bilateral_srgb=bilateral_srgb))
    return viz.grid([row_of(i, *masks)], ["image", "without CRF", "with CRF", "true mask"], size=1.6)


explorer = widgets.explore(
    draw,
    "The same maps without and with the CRF. Find an image that no setting mends, and one that any setting mends.",
    image=(0, min(len(seed_ids), 48) - 1, 1, 1),
    alpha=(1.0, 32.0, 1.0, 4.0),
    bilateral_srgb=(2.0, 60.0, 1.0, 13.0),
)

# %% [markdown]
# The same as a strip, for readers without a kernel: one image, three exponents, three widths in colour.

# %% tags=["nbval-ignore-output"]
strip_id, widths, exponents = scored["id"][len(scored) // 4], (3.0, 13.0, 80.0), (1, 4, 32)
rows = [row_of(strip_id, *(refine(strip_id, a, replace(crf, bilateral_srgb=w)) for a in exponents)) for w in widths]
titles = ["image", *(rf"$\alpha={a}$" for a in exponents), "true mask"]
figure = viz.grid(rows, titles, [rf"$\theta_\beta={w:g}$" for w in widths], size=1.2)
viz.show(
    figure,
    "From left to right the foreground gets more generous; from top to bottom ever more different colours talk to each other.",
)

# %% [markdown]
# ## Which exponent? And what does the CRF add?
#
# The pseudo masks of the stage use one $\alpha$ for all images, fixed in the settings. On some of the images we may try others
# *with* the true masks, to learn how much depends on it. This curve is a look behind the curtain: whoever has no pixel masks
# cannot draw it, and the stage does not use it.

# %% tags=["nbval-ignore-output"]
some = seed_ids[: int(np.clip(min(2e6 / truth.size, len(seed_ids) / 20), 6, 60))]
curves = {}
for name, one_crf in {"without CRF": None, "with CRF": crf}.items():
    for exponent in (1, 2, 4, 8, 16, 32):
        matrix = ConfusionMatrix(folder.n_classes + 1)
        for image_id in some:
            matrix.update(folder.mask(image_id), refine(image_id, exponent, one_crf))
        curves.setdefault(name, {})[exponent] = 100 * matrix.miou(stages.scored_classes(run))

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
pd.DataFrame(curves).plot(ax=axis, logx=True, style=["s--", "o-"], color=viz.COLORS[:2])
axis.axvline(alpha, color="grey", linestyle=":")
axis.set(
    xlabel=r"exponent $\alpha$",
    ylabel="mIoU (%)",
    xticks=list(curves["with CRF"]),
    xticklabels=list(curves["with CRF"]),
)
axis.minorticks_off()
viz.show(
    figure,
    "mIoU over the exponent, on some of the images. The dotted line is the exponent in the settings; the best one is known only with true masks.",
)

# %% [markdown]
# ## PAMR: the neighbours' mean in place of an energy
#
# There is a refinement with no energy, no square of all pixels, and no compiled library. *Pixel-adaptive mask refinement* gives each
# pixel $p$ a fixed set of neighbours, eight directions at a few distances, and replaces its scores by their mean, time and again:
#
# $$m^{t+1}_c(p) = \sum_q \alpha_{pq}\, m^t_c(q), \qquad \alpha_{pq} = \mathrm{softmax}_q\Big(-\tfrac13 \sum_{rgb} \frac{|x_p - x_q|}{0.1\, \sigma_p}\Big)$$
#
# Colours are compared in units of $\sigma_p$, their spread around the pixel: what is a large step in a smooth sky is a small one in a
# meadow. A CRF has that only as a fixed width $\theta_\beta$. In exchange PAMR never learns that labels exclude each other, and
# reaches no further than its largest distance times its iterations. It comes from single-stage training (notebook 06), where it
# runs at every step, so it had to be quick on a GPU. The setting `refine.how = "pamr"` gives the stage below to it.
#
# **Predict first.** Which of the two moves a mask further from its seed?

# %%
averaging = stages.mask_settings(load(profile, {**overrides, "refine.how": "pamr"})).pamr


def average(image_id, iterations, alpha=alpha):
    how = replace(averaging, iterations=iterations)
    return pseudo_mask(*look(image_id)[:3], MaskSettings("power", alpha=float(alpha), pamr=how))


# %% tags=["nbval-ignore-output"]
rounds = (0, 1, averaging.iterations)
rows = [row_of(i, *(average(i, n) for n in rounds), refine(i)) for i in [*alone[:2], hard]]
titles = ["image", *(f"PAMR, {n}" for n in rounds), "dense CRF", "true mask"]
figure = viz.grid(rows, titles, size=1.2)
viz.show(figure, "One seed refined by both: PAMR after none, one and all of its iterations, then the dense CRF.")

# %% tags=["nbval-ignore-output"]
ways = {"neither": lambda i: refine(i, alpha, None), "PAMR": lambda i: average(i, averaging.iterations), "CRF": refine}
for name, way in ways.items():
    matrix, start = ConfusionMatrix(folder.n_classes + 1), timeit.default_timer()
    for image_id in some:
        matrix.update(folder.mask(image_id), way(image_id))
    seconds = (timeit.default_timer() - start) / len(some)
    print(f"{name:8s} mIoU {100 * matrix.miou(stages.scored_classes(run)):.1f} %, {1e3 * seconds:.0f} ms an image")

# %% [markdown]
# ## Sure pixels: la and ha
#
# Must every pixel get a label? A later network that learns from these masks can skip a pixel (value 255, *ignore*). So let us keep
# only what both generosities agree on:
#
# - **la** (low $\alpha$) is generous to the background. What is *foreground* even under `la` is sure foreground.
# - **ha** (high $\alpha$) is generous to the foreground. What is *background* even under `ha` is sure background.
# - Everything between is 255.
#
# PSA takes $\alpha = 4$ and $32$. On masks, the rule is two comparisons, and the library's `la_ha_mask` does the same.

# %%
la, ha = refine(easy, 4), refine(easy, 32)
sure = np.where(ha == 0, 0, np.where(la > 0, la, 255))
np.testing.assert_array_equal(sure, la_ha_mask(la, ha))
print("our rule and la_ha_mask agree")

# %% tags=["nbval-ignore-output"]
rows = [row_of(i, refine(i, 4), refine(i, 32), la_ha_mask(refine(i, 4), refine(i, 32))) for i in [*alone[:2], hard]]
figure = viz.grid(rows, ["image", r"la: $\alpha=4$", r"ha: $\alpha=32$", "sure pixels", "true mask"], size=1.25)
viz.show(figure, "Low and high exponent, and what is sure under both. White pixels are left undecided (255).")

# %% [markdown]
# Does it pay? For each kind of mask we count how many pixels keep a label, and how often the labels are right, apart for
# pixels that say *foreground* and pixels that say *background*. The foreground of the sure mask is that of `la`, its
# background is that of `ha`. So compare three numbers: the purity of each, and how much is left to learn from. Purity has its
# price: the undecided pixels are mostly outlines, and there a network would have had most to learn.

# %% tags=["nbval-ignore-output"]
counts = {name: np.zeros(5) for name in ("la", "ha", "sure")}
for image_id in some:
    la, ha, truth = refine(image_id, 4), refine(image_id, 32), folder.mask(image_id).numpy()
    for name, mask in {"la": la, "ha": ha, "sure": la_ha_mask(la, ha)}.items():
        known, right = truth < 255, mask == truth
        front, back = known & (mask > 0) & (mask < 255), known & (mask == 0)
        counts[name] += [known.sum(), front.sum(), (front & right).sum(), back.sum(), (back & right).sum()]
rows = {name: [(f + b) / n, fr / max(f, 1), br / max(b, 1)] for name, (n, f, fr, b, br) in counts.items()}
columns = ["labelled (%)", "foreground right (%)", "background right (%)"]
(100 * pd.DataFrame(rows, index=columns).T).round(1)

# %% [markdown]
# ## Measure
#
# Seeds and pseudo masks are scored alike: on the same images, over the same classes, from one confusion matrix over all
# images. Each line says how its free number was chosen, because that is part of a result.

# %% tags=["nbval-ignore-output"]
seed_score, mask_score = cams_stage.metrics["seed"], mask_stage.metrics["mask"]
theta, best = settings.localize.threshold, seed_score["best"]["threshold"]
lines = {
    "seed, fixed threshold": (seed_score["fixed"], f"threshold {theta:g}, set beforehand"),
    "seed, best threshold": (seed_score["best"], f"threshold {best:.2f}, WITH pixel truth"),
    "pseudo mask": (mask_score, f"exponent {alpha:g}, fixed in the settings"),
}
print(f"{len(seed_ids)} images; classes in the mean:", ", ".join(mask_score["miou_classes"]))
rows = [[name, f"{100 * s['miou']:.1f}", f"{100 * s['pixel_accuracy']:.1f}", how] for name, (s, how) in lines.items()]
pd.DataFrame(rows, columns=["what", "mIoU (%)", "pixel accuracy (%)", "how it was chosen"])

# %% [markdown]
# The honest step is from the first line to the third: both could be had without a single pixel mask. The second line is the
# most that a threshold alone could reach. All three come from one training with one seed; several seeds would scatter.
#
# Does every class gain? Look for one that does not, and ask what its objects look like.


# %%
def before_and_after(before, after, unit):
    table = 100 * pd.DataFrame({"seed": before, "pseudo mask": after}, dtype=float).dropna()
    axis = table.plot.barh(figsize=(5, 0.4 * len(table) + 1), width=0.8, color=[viz.COLORS[7], viz.COLORS[0]])
    for bars in axis.containers:
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=7)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xlabel(unit)
    return axis.figure


# %% tags=["nbval-ignore-output"]
figure = before_and_after(seed_score["fixed"]["iou"], mask_score["iou"], "IoU (%)")
viz.show(figure, "Intersection over union of each class, seed at the fixed threshold and pseudo mask.")

# %% [markdown]
# And the two groups of notebook 01: images whose object stands on its usual context (**agrees**), and the others
# (**disagrees**). The CRF sharpens masks. It was not made to undo a bias, so look whether a gap closes, stays or opens.

# %% tags=["nbval-ignore-output"]
if mask_score.get("groups") and seed_score.get("groups"):
    figure = before_and_after(seed_score["groups"], mask_score["groups"], "mIoU (%)")
    viz.show(figure, "Images that agree with the context bias and images that do not, before and after the CRF.")
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# ### Paper · here
#
# What papers print for the pseudo masks of their *baselines* on the training images of VOC 2012, and what this run measured on
# its own data, in separate columns. Two cautions. The data sets differ unless yours is VOC 2012. And the papers' pseudo
# masks come from a **random walk** with learnt affinities (PSA, IRN), a stronger refinement than a CRF alone.

# %% tags=["nbval-ignore-output"]
paper = results.paper(
    stage="pseudo_mask", split="train", dataset="voc12", metric="mIoU", kind="main", method="baseline"
)
table = (
    paper[["paper", "source", "host", "backbone", "value"]]
    .astype(object)
    .rename(columns={"value": "paper: pseudo-mask mIoU (%)"})
)
table = table.assign(**{f"here: pseudo-mask mIoU on {folder.name} (%)": ""}).reset_index(drop=True)
table.loc[len(table)] = ["this run", profile, method, settings.backbone.name, "", f"{100 * mask_score['miou']:.1f}"]
table

# %% [markdown]
# ## Exercises
#
# 1. **Only smoothness.** Set `overrides = {"dense_crf.bilateral_compat": 0.0}`. What can the CRF still do, and which of the
#    failures above disappear together with the successes?
# 2. **Too wide.** Try `{"dense_crf.bilateral_sxy": 80.0}` on the toy scenes, the width that is right for photographs. Predict
#    first which objects suffer, small or large ones.
# 3. **Hard seeds.** IRN gives the CRF not the scores but their *argmax*, trusted at 0.7 (`MaskSettings(hard=True)`). Find an image
#    in which this rescues an object that the soft scores lose, and explain why.
# 4. **One after the other.** In `mean_field`, update one half of the pixels and then the other. Does the energy still fall at
#    each step? Does the final labelling change?
#
# <details><summary>Hints</summary>
# <b>1.</b> Specks vanish, corners get round, no label travels far: outlines came from the colours alone.
# <b>2.</b> With such a width, all pixels of one colour count alike, wherever they are. What is rare in the image is outvoted.
# <b>3.</b> Look for an object whose activation is low, but still above the background's score. As a hard label it gets 0.7 all the same.
# <b>4.</b> Use the matrix of the small image, and two index arrays. Updates in turn can only lower the quantity that mean field minimises.
# </details>

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> Why does a dense CRF find outlines that a CRF over neighbouring pixels misses?</summary>
# With neighbours only, labels must creep from pixel to pixel, and every cut costs by its length, so thin parts are cut off. With
# an edge between all pairs, a leg is connected directly with a head of the same colour.
# </details>
#
# <details><summary><b>2.</b> The energy has fallen, and the mask is worse. Is there a mistake in the code?</summary>
# No. The energy rewards labellings that suit the seed and the colours. If the seed is on the wrong side of an outline, the
# labelling with the least energy is wrong, and better minimisation makes it more wrong.
# </details>
#
# <details><summary><b>3.</b> Why may absent classes be left out here, but not when a trained network segments a new image?</summary>
# Training images come with their image-level labels; that is the supervision. A new image comes with nothing. Using true
# labels at test time would be a leak, and some published numbers contain it.
# </details>

# %% [markdown]
# ## Take-aways
#
# - A dense CRF trades the opinion of a map against agreement with all pixels that are close and alike. Mean field makes that
#   a repeated blur, and the lattice makes the blur fast.
# - Background gets its score from the absence of classes. Its exponent is a threshold in disguise, and part of the result.
# - Only labels that are present enter: faster, and nothing can be invented.
# - PAMR averages over neighbours of like colour; it is simpler and more local, and needs nothing but torch.
# - The CRF **amplifies**. Right seeds become masks, wrong seeds become larger mistakes; it knows colours, not objects.
# - `la` and `ha` trade the number of labelled pixels against their purity.
# - It is a refinement without learning. Random walks over *learnt* affinities (PSA, IRN) are the next step up; they too start from
#   `la` and `ha`.

# %% [markdown]
# ## References
#
# - P. Krähenbühl, V. Koltun. *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials.* NIPS 2011.
# - A. Adams, J. Baek, M. A. Davis. *Fast High-Dimensional Filtering Using the Permutohedral Lattice.* Eurographics 2010.
# - J. Ahn, S. Kwak. *Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
#   Segmentation* (PSA). CVPR 2018. The background exponent, `la` and `ha`.
# - J. Ahn, S. Cho, S. Kwak. *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations* (IRN). CVPR 2019.
# - N. Araslanov, S. Roth. *Single-Stage Semantic Segmentation from Image Labels.* CVPR 2020. PAMR.
# - Next: [08 Segmentation](08_segmentation.ipynb), where a network learns from these masks, and needs no labels any more.
