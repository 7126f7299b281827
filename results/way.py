"""The picture of the README: toy scenes on their way from an image-level label to a mask. Writes results/way.png."""

from data_prep.ready import ready
from wsss_lib import stages, viz
from wsss_lib.data.masks import read_mask
from wsss_lib.localize import load_cam, seed
from wsss_lib.project import project_root
from wsss_lib.runs import Run
from wsss_lib.settings import load

SHOWN = 3


def main() -> None:
    """Run what is missing of the demo, and draw training scenes with a fair share of every class."""
    settings = load("demo")
    run = Run(settings, ready(settings))
    folder, maps = run.folder, stages.make_cams(run).path / "cams"
    pseudo = stages.make_pseudo_masks(run).path / "masks"
    rows, names = [], []
    for image_id in run.ids("train"):
        label = folder.class_names(image_id)
        if len(label) != 1 or label[0] in names:
            continue
        image, truth = folder.image(image_id), folder.mask(image_id)
        cam = load_cam(maps / f"{image_id}.npz", n_classes=folder.n_classes)
        rows.append(
            [
                image,
                viz.overlay_cam(image, cam.amax(0)),
                viz.overlay_mask(image, seed(cam, settings.localize.threshold)),
                viz.overlay_mask(image, read_mask(pseudo / f"{image_id}.png")),
                viz.overlay_mask(image, truth),
            ]
        )
        names.append(label[0])
        if len(rows) == SHOWN:
            break
    titles = ["image and its label", "activation map", "seed", "pseudo mask", "true mask"]
    (project_root() / "results" / "way.png").write_bytes(viz.png(viz.grid(rows, titles, names), dpi=110))


if __name__ == "__main__":
    main()
