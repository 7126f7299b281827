"""The names of PASCAL VOC 2012's classes, in the order of its masks: value 1 is aeroplane, 20 tvmonitor."""

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

IGNORE = 255
"""Pixel value that no score and no loss counts: VOC's void, and what padding adds to a mask."""
